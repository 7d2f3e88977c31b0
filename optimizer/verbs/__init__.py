"""What can be done beside building: one function a verb, from values to values; `cli/` shows what it returns."""
