"""Calibration methods, one module or package each; the registry discovers them."""
