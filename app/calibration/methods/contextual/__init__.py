"""Contextual scaling: a misclassification detector moves each pixel's confidence."""

from app.calibration.methods.contextual.calibrator import Contextual

__all__ = ["Contextual"]
