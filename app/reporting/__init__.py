"""An evaluation as a table and as one page that stands by itself."""
