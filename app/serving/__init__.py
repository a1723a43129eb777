"""From a decoded image to its prediction, with result cache and drift monitor."""

from app.serving.drift_monitor import DriftMonitor, DriftPolicy
from app.serving.memory import MemoryBudget
from app.serving.model_folders import (
    check_models,
    find_model,
    max_concurrent_requests,
    model_folders,
)
from app.serving.pipeline import StageTimer, predict_image, predict_logits
from app.serving.reload import LoadReport, load_folders
from app.serving.result_cache import Result, ResultCache, Results
from app.serving.result_files import ResultFiles
from app.serving.segmenter import (
    ACTIVE,
    MIN_IN_DISTRIBUTION,
    NO_CALIBRATOR,
    Segmentation,
    Segmenter,
    SegmentOptions,
    abstained_fraction,
    certified_level,
    class_table,
    find_calibrator,
)

__all__ = [
    "ACTIVE",
    "MIN_IN_DISTRIBUTION",
    "NO_CALIBRATOR",
    "DriftMonitor",
    "DriftPolicy",
    "LoadReport",
    "MemoryBudget",
    "Result",
    "ResultCache",
    "ResultFiles",
    "Results",
    "SegmentOptions",
    "Segmentation",
    "Segmenter",
    "StageTimer",
    "abstained_fraction",
    "certified_level",
    "check_models",
    "class_table",
    "find_calibrator",
    "find_model",
    "load_folders",
    "max_concurrent_requests",
    "model_folders",
    "predict_image",
    "predict_logits",
]
