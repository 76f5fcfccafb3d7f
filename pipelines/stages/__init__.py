"""The stages as functions: a command runs one, the workflow all of them in order."""
