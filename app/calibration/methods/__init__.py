"""The calibration methods, one module each."""
