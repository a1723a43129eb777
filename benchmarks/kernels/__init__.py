"""Speed of the compiled kernels."""
