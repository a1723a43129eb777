"""Predictions from tensors, and the arrays of a prediction."""

from app.calibration.predictions import Prediction
from app.inference.postprocess import postprocess


def prediction_of(confidence, classes):
    """Build a prediction from a confidence and class ids, tensors of one shape."""
    return Prediction.from_tensors(classes, confidence)


def postprocessed(*args, **options):
    """Postprocess logits and return mask and confidence as arrays."""
    prediction = postprocess(*args, **options)
    return prediction.mask, prediction.confidence
