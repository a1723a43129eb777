"""The command line `segcal`."""
