"""Calibrators, their fit and selection, metrics, risk control and drift."""

from app.calibration.base import (
    MAX_LOG_ODDS,
    Calibrator,
    FitContext,
    LogOddsShift,
    finite_logits,
    ignore_progress,
)
from app.calibration.dataset import IGNORE, LabelledImage, ValidationSet, WithImageHashes
from app.calibration.drift import (
    CONFIDENCE_BINS,
    Divergence,
    Floats,
    Reference,
    divergences,
    histogram,
)
from app.calibration.label_agreement import find_disagreement
from app.calibration.methods.temperature import Temperature
from app.calibration.metrics.assessment import Assessment
from app.calibration.metrics.confidence_histogram import RiskCoverage
from app.calibration.metrics.evaluation import LOG_FLOOR, Evaluation
from app.calibration.metrics.intervals import Interval, bootstrap_mean
from app.calibration.metrics.reliability import ReliabilityBin
from app.calibration.metrics.segmentation import UncertaintyIoU, theta_grid
from app.calibration.metrics.subsets import by_crop_size
from app.calibration.predictions import Confidence, Mask, Prediction
from app.calibration.registry import auto_methods, build, discover, require_options
from app.calibration.report import build_report, without_nan
from app.calibration.selection import ALPHA, Outcome, fit

__all__ = [
    "ALPHA",
    "CONFIDENCE_BINS",
    "IGNORE",
    "LOG_FLOOR",
    "MAX_LOG_ODDS",
    "Assessment",
    "Calibrator",
    "Confidence",
    "Divergence",
    "Evaluation",
    "FitContext",
    "Floats",
    "Interval",
    "LabelledImage",
    "LogOddsShift",
    "Mask",
    "Outcome",
    "Prediction",
    "Reference",
    "ReliabilityBin",
    "RiskCoverage",
    "Temperature",
    "UncertaintyIoU",
    "ValidationSet",
    "WithImageHashes",
    "auto_methods",
    "bootstrap_mean",
    "build",
    "build_report",
    "by_crop_size",
    "discover",
    "divergences",
    "find_disagreement",
    "finite_logits",
    "fit",
    "histogram",
    "ignore_progress",
    "require_options",
    "theta_grid",
    "without_nan",
]
