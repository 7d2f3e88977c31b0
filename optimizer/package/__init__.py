"""The engine folder: written whole or not at all, sealed by a passport, verified before it is loaded."""

from __future__ import annotations

from optimizer.package.workspace import Workspace as Workspace
