"""Calibration, ranking and segmentation metrics."""
