"""Model files in: import and quantisation."""
