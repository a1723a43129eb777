"""Model cards, backbones, preprocessing, logits of an image, and postprocessing."""

from app.inference.backbone import first_line, open_backbone
from app.inference.batching import MAX_BATCH_SIZE
from app.inference.checkpoints import describe_checkpoint, read_state_dict
from app.inference.cuda import nvidia_device_present
from app.inference.model_card import (
    CARD,
    Activation,
    Card,
    ClassInfo,
    InputPolicy,
    ModelFolder,
    OutputPolicy,
    Resample,
    ShortSide,
    default_name,
    model_files,
    read_card,
    read_model_folder,
)
from app.inference.outputs import MIN_PROBABILITY, LogitsBackbone, LogitsOutput
from app.inference.postprocess import (
    SERIAL,
    ClassStatistics,
    allocate_prediction,
    class_statistics,
    log_probability_strips,
    postprocess_strip,
    shift_confidence,
)
from app.inference.predictor import SCALES, Predictor, PreparedImage, Tta, open_predictor
from app.inference.preprocess import Band, Geometry, Size, plan, thumbnail
from app.inference.sliding_window import Strip
from app.inference.taxonomies import TAXONOMIES, Taxonomy
from app.inference.threads import ActiveRequests, RowWorkers, SharedActiveRequests

__all__ = [
    "CARD",
    "MAX_BATCH_SIZE",
    "MIN_PROBABILITY",
    "SCALES",
    "SERIAL",
    "TAXONOMIES",
    "Activation",
    "ActiveRequests",
    "Band",
    "Card",
    "ClassInfo",
    "ClassStatistics",
    "Geometry",
    "InputPolicy",
    "LogitsBackbone",
    "LogitsOutput",
    "ModelFolder",
    "OutputPolicy",
    "Predictor",
    "PreparedImage",
    "Resample",
    "RowWorkers",
    "SharedActiveRequests",
    "ShortSide",
    "Size",
    "Strip",
    "Taxonomy",
    "Tta",
    "allocate_prediction",
    "class_statistics",
    "default_name",
    "describe_checkpoint",
    "first_line",
    "log_probability_strips",
    "model_files",
    "nvidia_device_present",
    "open_backbone",
    "open_predictor",
    "plan",
    "postprocess_strip",
    "read_card",
    "read_model_folder",
    "read_state_dict",
    "shift_confidence",
    "thumbnail",
]
