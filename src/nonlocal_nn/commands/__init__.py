"""Bodies of the commands that join several parts: one module a command, imported when it is called."""
