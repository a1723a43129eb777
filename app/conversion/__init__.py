"""Import and quantisation of model files."""
