"""The whole story of a build: report.json is the one source of truth, the views only show it."""
