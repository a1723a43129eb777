"""Six labelled pixels of two images for metrics by hand, and the error bound of binned AUROC."""

import torch

from app.calibration.metrics.confidence_histogram import ConfidenceHistogram

PROBABILITIES = torch.tensor(
    [
        [0.95, 0.03, 0.02],
        [0.85, 0.10, 0.05],
        [0.25, 0.65, 0.10],
        [0.10, 0.15, 0.75],
        [0.45, 0.35, 0.20],
        [0.05, 0.92, 0.03],
    ]
)
LABELS = torch.tensor([0, 1, 1, 2, 1, 2])
IMAGES = (slice(0, 3), slice(3, 6))
CONFIDENCE = PROBABILITIES.amax(1)
PREDICTED = PROBABILITIES.argmax(1)
CORRECT = PREDICTED == LABELS  # 1 0 1 1 0 0


def auroc_error_bound(histogram: ConfidenceHistogram) -> float:
    """Compute half the fraction of (correct, wrong) pairs that share a bin and so count as tied."""
    pairs = float(histogram.right.sum()) * float(histogram.wrong.sum())
    return float((histogram.right * histogram.wrong.astype(float)).sum() / pairs / 2)
