"""Calibrations that ship (TOML)."""
