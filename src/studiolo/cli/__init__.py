"""The command line: one file a command; start-up imports nothing heavy."""
