"""From a decoded image to its prediction, with result cache and drift monitor."""

from app.serving.drift_monitor import DriftMonitor, DriftPolicy
from app.serving.memory import MemoryBudget
from app.serving.pipeline import StageTimer, predict_image, predict_logits
from app.serving.reload import LoadReport, load_folders
from app.serving.result_cache import Result, ResultCache
from app.serving.segmenter import (
    ACTIVE,
    NO_CALIBRATOR,
    Segmentation,
    Segmenter,
    SegmentOptions,
    abstained_fraction,
    class_table,
    find_calibrator,
)

__all__ = [
    "ACTIVE",
    "NO_CALIBRATOR",
    "DriftMonitor",
    "DriftPolicy",
    "LoadReport",
    "MemoryBudget",
    "Result",
    "ResultCache",
    "SegmentOptions",
    "Segmentation",
    "Segmenter",
    "StageTimer",
    "abstained_fraction",
    "class_table",
    "find_calibrator",
    "load_folders",
    "predict_image",
    "predict_logits",
]
