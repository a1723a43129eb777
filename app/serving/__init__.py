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
from app.serving.result_cache import Result, Results
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
from app.serving.shared_storage import exchanging_drift, open_results, open_shared

__all__ = [
    "ACTIVE",
    "MIN_IN_DISTRIBUTION",
    "NO_CALIBRATOR",
    "DriftMonitor",
    "DriftPolicy",
    "LoadReport",
    "MemoryBudget",
    "Result",
    "Results",
    "SegmentOptions",
    "Segmentation",
    "Segmenter",
    "StageTimer",
    "abstained_fraction",
    "certified_level",
    "check_models",
    "class_table",
    "exchanging_drift",
    "find_calibrator",
    "find_model",
    "load_folders",
    "max_concurrent_requests",
    "model_folders",
    "open_results",
    "open_shared",
    "predict_image",
    "predict_logits",
]
