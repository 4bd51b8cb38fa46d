"""Job catalogues, one TOML file each."""
