"""Time and memory of fits: beside other libraries, and of a refit."""
