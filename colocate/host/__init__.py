"""The live machine: finds, senses and moves real processes and containers."""
