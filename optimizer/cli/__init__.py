"""The command line: one file a command, found by its name; parses, calls one function, shows."""
