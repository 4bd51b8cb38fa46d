"""The policies that ship, each one file, each readable on its own."""
