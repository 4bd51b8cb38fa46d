"""An open-loop load generator that prints the format of mcperf."""
