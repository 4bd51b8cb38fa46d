"""The commands: one module a command, no logic of its own."""
