"""Inference on tensors: images in, masks and confidence out, by the segmenter of `/segment`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.api.dependencies import State
from app.calibration.predictions import Prediction
from app.deadline import Deadline
from app.errors import ArgumentError, TooLargeError, UnavailableError
from app.imaging.decode import ImageArray
from app.inference.predictor import Predictor
from app.open_inference import ModelMetadata, Tensor, TensorMetadata, validate
from app.schemas.service import GUARANTEES, InferenceOptions
from app.serving.pipeline import StageTimer
from app.serving.segmenter import (
    ACTIVE,
    NO_CALIBRATOR,
    Segmentation,
    Segmenter,
    SegmentOptions,
)

UNCALIBRATED = "uncalibrated"  # the version that is the plain softmax
INPUT, MASK, CONFIDENCE = "image", "mask", "confidence"
PLATFORM = "segcal"
MAX_IMAGES = 256  # of one request
# Parameters of the protocol's extensions that do not change the response.
PROTOCOL_PARAMETERS = frozenset(
    {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}
)

Upload = bytes | ImageArray


@dataclass(frozen=True)
class Inference:
    """Masks [N,H,W] and confidence float32 [N,H,W] of N images of one size.

    `version` is the calibrator's id or "uncalibrated". `parameters` has the calibrator for clients
    that drop the version, the abstention threshold, and the guarantee that applies to all images.
    """

    model: str
    version: str
    parameters: dict[str, str | float]
    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float32]

    def tensors(self, names: Sequence[str]) -> list[Tensor]:
        """Return outputs by name, all without names; raises ArgumentError for an unknown one."""
        values: dict[str, NDArray[Any]] = {MASK: self.mask, CONFIDENCE: self.confidence}
        check_names(names)
        return [Tensor(name, values[name]) for name in names or values]


def check_names(names: Sequence[str]) -> None:
    """Raise ArgumentError for the name of an output that does not exist."""
    for name in names:
        if name not in (MASK, CONFIDENCE):
            raise ArgumentError(f"expected an output of {[MASK, CONFIDENCE]}, got {name[:80]!r}")


def infer(
    model: str,
    version: str | None,
    parameters: Mapping[str, object],
    inputs: Sequence[Tensor],
    segmenter: Segmenter,
    state: State,
    deadline: Deadline,
) -> Inference:
    """Segment the images of a request, one after another; blocks, so run it in a thread.

    Raises the errors of `Segmenter.segment`, ArgumentError for other inputs, parameters or images
    of several sizes, and TooLargeError where the images have more pixels in all than one may have.
    """
    known = {key: value for key, value in parameters.items() if key not in PROTOCOL_PARAMETERS}
    chosen = validate(InferenceOptions, known)
    options = SegmentOptions(
        model, calibrator_of(version), chosen.min_confidence, chosen.max_error, chosen.tta
    )
    uploads = images_of(inputs)

    def segment(upload: Upload) -> Segmentation:
        started, timer = time.perf_counter(), StageTimer()
        done = segmenter.segment(upload, options, timer, deadline)
        timer.stages["total"] = (time.perf_counter() - started) * 1000
        state.metrics.count_segmentation(model, done.mean_confidence, timer.stages)
        return done

    return _join(uploads, segment, state.settings.max_pixels)


def calibrator_of(version: str | None) -> str:
    """Return the calibrator that a model's version names, the active one without a version."""
    return NO_CALIBRATOR if version == UNCALIBRATED else version or ACTIVE


def version_of(done: Segmentation) -> str:
    """Return the version that a segmentation used: the calibrator's id or "uncalibrated"."""
    return UNCALIBRATED if done.calibrator is None else done.calibrator.manifest.id


def images_of(inputs: Sequence[Tensor]) -> Sequence[Upload]:
    """Return the images of the only input: encoded ones or uint8 RGB [H,W,3].

    Raises ArgumentError for other inputs.
    """
    if [tensor.name for tensor in inputs] != [INPUT]:
        raise ArgumentError(
            f"expected one input named {INPUT!r}, got {[tensor.name[:80] for tensor in inputs]}"
        )
    (tensor,) = inputs
    shape = tensor.shape
    is_pixels = tensor.datatype == "UINT8" and len(shape) == 4 and shape[3] == 3
    if not isinstance(tensor.values, list) and not (is_pixels and all(shape)):
        raise ArgumentError(
            f"expected {INPUT} as BYTES, each element an encoded image, or as UINT8 [N,H,W,3], "
            f"got {tensor.datatype} {list(shape)}"
        )
    if not 1 <= shape[0] <= MAX_IMAGES:
        raise ArgumentError(f"expected 1 to {MAX_IMAGES} images in a request, got {shape[0]}")
    if isinstance(tensor.values, list):
        return tensor.values
    return [np.array(image) for image in tensor.values]  # kernels are compiled for writable arrays


def _join(
    uploads: Sequence[Upload], segment: Callable[[Upload], Segmentation], max_pixels: int
) -> Inference:
    """Segment images and stack their masks and confidence, which must have one size."""
    first = segment(uploads[0])
    size, version = first.prediction.mask.shape, version_of(first)
    if len(uploads) * first.prediction.mask.size > max_pixels:
        raise TooLargeError(
            f"expected at most {max_pixels} pixels in all images of a request, got {len(uploads)} "
            f"images of {size[1]}x{size[0]}"
        )
    joined = _allocate(first.prediction, len(uploads))
    applies = []
    for index, upload in enumerate(uploads):
        done = first if index == 0 else segment(upload)
        if done.prediction.mask.shape != size:
            got = done.prediction.mask.shape
            raise ArgumentError(
                f"expected images of one size in a request, got {size[1]}x{size[0]} and "
                f"{got[1]}x{got[0]}"
            )
        if version_of(done) != version:
            raise UnavailableError(
                f"expected one version for all images, got {version_of(done)} activated after "
                f"{version}: send the request again"
            )
        joined.mask[index] = done.prediction.mask
        joined.confidence[index] = done.prediction.confidence
        if done.guarantee is not None:
            applies.append(done.guarantee.applies)
    parameters: dict[str, str | float] = {"calibrator": calibrator_of(version)}
    if first.threshold is not None:
        parameters["threshold"] = first.threshold
    if applies:
        weakest = next(value for value in (False, None, True) if value in applies)
        parameters["guarantee"] = GUARANTEES[weakest]
    model = first.predictor.folder.card.name
    return Inference(model, version, parameters, joined.mask, joined.confidence)


def _allocate(prediction: Prediction, count: int) -> Prediction:
    shape = count, *prediction.mask.shape
    return Prediction(np.empty(shape, prediction.mask.dtype), np.empty(shape, np.float32))


def metadata_of(segmenter: Segmenter, model: str, version: str | None) -> ModelMetadata:
    """Return a model's metadata: its versions, or the one named, and its inputs and outputs.

    Raises the errors of `Segmenter.calibrator`.
    """
    predictor = segmenter.predictor(model)
    if version is None:
        stored = segmenter.artifacts.versions(predictor.folder.card.name)
        versions = [*(manifest.id for manifest in stored), UNCALIBRATED]
    else:
        segmenter.calibrator(predictor, calibrator_of(version))
        versions = [version]
    return ModelMetadata(
        name=predictor.folder.card.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[TensorMetadata(name=INPUT, datatype="BYTES", shape=[-1])],
        outputs=[
            TensorMetadata(name=MASK, datatype=mask_datatype(predictor), shape=[-1, -1, -1]),
            TensorMetadata(name=CONFIDENCE, datatype="FP32", shape=[-1, -1, -1]),
        ],
    )


def mask_datatype(predictor: Predictor) -> str:
    """Return the datatype of a model's masks; the highest value marks abstained pixels."""
    return "UINT8" if predictor.folder.num_classes < 256 else "UINT16"
