"""Export a model with its calibrator as one ONNX file, from an image to labels and confidence.

    image -> preprocessing -> backbone -> calibration, upsampling, labels, confidence

Preprocessing and postprocessing are exported by torch, and joined with the model's own graph. The
file is compared with the service on several images before it is given out.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from app.conversion.exported_modules import Postprocessing, Preprocessing
from app.conversion.onnx_graphs import (
    IMAGE,
    INPUT,
    OUTPUT,
    PIXELS,
    connect,
    import_packages,
    join,
    load_backbone,
    network_input,
    opset,
    to_onnx,
)
from app.conversion.reference import MIN_LABEL_AGREEMENT
from app.errors import ModelError
from app.inference.backbone import first_line
from app.inference.model_card import Card, ModelFolder, model_files
from app.inference.outputs import LogitsBackbone, LogitsOutput
from app.inference.predictor import Predictor
from app.serving.pipeline import predict_image
from app.storage.manifest import StoredCalibrator

if TYPE_CHECKING:
    import onnx

MAX_CONFIDENCE_DIFFERENCE = 0.01  # absolute; int8 networks amplify rounding errors of their input
MAX_BYTES = 2**31 - 2**20  # of weights in one protobuf message; the graph takes the rest
TRIAL_SIZES = ((240, 328), (97, 131), (360, 490))  # (height, width) of images for the comparison
TRIAL_BLOCK = 12  # pixels of one colour
CERTIFICATE, CLASSES, PREPROCESSING = "segcal.certificate", "segcal.classes", "segcal.preprocessing"
PREDICTION = ("labels", "confidence", "in_distribution")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class ServiceAgreement:
    """Agreement of an exported file with the service, on some images.

    `label_agreement` is the fraction of equal labels, and `confidence_difference` the largest
    absolute difference of confidence where they are equal.
    """

    images: int
    label_agreement: float
    confidence_difference: float


@dataclass(frozen=True)
class ExportedModel:
    """The bytes of an exported ONNX file, and its agreement with the service."""

    data: bytes
    agreement: ServiceAgreement


def export_model(
    predictor: Predictor, stored: StoredCalibrator | None, images: Sequence[Image] = ()
) -> ExportedModel:
    """Export a model on the CPU with a calibrator; None stands for the plain softmax.

    The comparison uses `images` (uint8 RGB [H,W,3]) besides synthetic ones. Raises SetupError
    without the optional packages, and ModelError for a model or calibrator that can't be exported
    and for a file that differs from the service.
    """
    package = import_packages()
    folder = predictor.folder
    require_exportable(folder)
    backbone = load_backbone(package, folder)
    postprocessing = build_postprocessing(predictor, stored)
    images = [*trial_images(), *images]
    grid = predictor.backbone(predictor.first_window(images[0]).numpy()).shape[2:]
    try:
        parts = export_parts(package, folder, backbone, postprocessing, images[0], grid)
        model = join(package, parts)
        agreement = compare(model.SerializeToString(), predictor, stored, images)
    except Exception as error:  # the exporter raises errors of many types
        method = "no calibrator" if stored is None else stored.manifest.method
        raise ModelError(
            f"{folder.card.name}: expected a model that can be exported with {method}, "
            f"got: {first_line(error)}"
        ) from error
    require_agreement(folder.card, agreement)
    for key, value in metadata(folder, stored, agreement).items():
        model.metadata_props.add(key=key, value=value)
    return ExportedModel(model.SerializeToString(), agreement)


def require_exportable(folder: ModelFolder) -> None:
    """Raise ModelError for a card whose preprocessing no ONNX operator computes."""
    policy, name = folder.card.input, folder.card.name
    if folder.path.suffix != ".onnx":
        raise ModelError(f"{name}: expected an ONNX file to export, got {folder.path.name}")
    if policy.mode == "slide":
        raise ModelError(
            f'{name}: expected mode = "whole" for an export, got "slide": the service places and '
            "blends the windows, and one graph cannot"
        )
    if policy.size != "native" and policy.resample == "area":
        raise ModelError(
            f'{name}: expected resample = "bilinear" or "bicubic" for an export, got "area", which '
            "ONNX has no operator for"
        )
    size = sum(path.stat().st_size for path in model_files(folder.path))
    if size > MAX_BYTES:
        raise ModelError(
            f"{name}: expected at most {MAX_BYTES / 1e9:.1f} GB of weights for one ONNX file, "
            f"got {size / 1e9:.1f}"
        )


def build_postprocessing(predictor: Predictor, stored: StoredCalibrator | None) -> Postprocessing:
    """Return the module behind a model's network; raises ModelError for a remote network."""
    if not isinstance(predictor.backbone, LogitsBackbone):
        raise ModelError(
            f"{predictor.folder.card.name}: expected a network on the CPU of this process, got "
            f"one on {predictor.backbone.device}"
        )
    return Postprocessing(
        predictor.folder.card.input,
        predictor.backbone.output,
        None if stored is None else stored.calibrator,
        predictor.folder.num_classes,
    )


def export_parts(
    package: Any,  # noqa: ANN401
    folder: ModelFolder,
    backbone: "onnx.ModelProto",
    postprocessing: Postprocessing,
    image: Image,
    grid: Sequence[int],
) -> list["onnx.ModelProto"]:
    """Return the graphs before, of and behind the network, joined by the names of their values."""
    version = opset(backbone)
    preprocessing = Preprocessing(folder.card.input, network_input(backbone))
    example = torch.from_numpy(image)
    planes, pixels = preprocessing(example)
    output = example_output(postprocessing.output, folder.num_classes, grid, planes)
    predicted = PREDICTION[: 3 if postprocessing.shifts else 2]
    before = to_onnx(preprocessing, {IMAGE: example}, (INPUT, PIXELS), version)
    inputs = {OUTPUT: output, PIXELS: pixels, IMAGE: example}
    axes = (1, 2) if postprocessing.output.channels_last else (2, 3)
    after = to_onnx(postprocessing, inputs, predicted, version, axes)
    connect(package, backbone, postprocessing.output)
    return [before, backbone, after]


def example_output(
    output: LogitsOutput, classes: int, grid: Sequence[int], planes: torch.Tensor
) -> torch.Tensor:
    """Return an output of the network's form, of random values in 0..1."""
    generator = torch.Generator().manual_seed(0)
    channels = 1 if output.one_channel else classes
    maps = (*grid, channels) if output.channels_last else (channels, *grid)
    return torch.rand(len(planes), *maps, generator=generator)


def trial_images() -> list[Image]:
    """Return synthetic images of several sizes, uint8 RGB: blocks of random colours with noise."""
    rng, images = np.random.default_rng(0), []
    for height, width in TRIAL_SIZES:
        blocks = rng.integers(20, 236, (-(-height // TRIAL_BLOCK), -(-width // TRIAL_BLOCK), 3))
        image = blocks.repeat(TRIAL_BLOCK, 0).repeat(TRIAL_BLOCK, 1)[:height, :width]
        noise = rng.integers(-20, 20, image.shape)
        images.append((image + noise).astype(np.uint8))
    return images


def compare(
    data: bytes, predictor: Predictor, stored: StoredCalibrator | None, images: Sequence[Image]
) -> ServiceAgreement:
    """Compare an exported file with the service's predictions of some images."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    calibrator = None if stored is None else stored.calibrator
    equal, pixels, differences = 0, 0, []
    for image in images:
        served = predict_image(image, predictor, calibrator)
        labels, confidence = session.run(list(PREDICTION[:2]), {IMAGE: image})
        same = labels == served.mask
        equal += int(same.sum())
        pixels += labels.size
        # At a tie of two classes either label is right, and its confidence may be another one.
        differences.append(np.abs(confidence - served.confidence)[same].max(initial=0))
    return ServiceAgreement(len(images), equal / pixels, float(np.max(differences)))


def require_agreement(card: Card, agreement: ServiceAgreement) -> None:
    """Raise ModelError for an exported file whose labels or confidence differ from the service."""
    agrees = agreement.label_agreement >= MIN_LABEL_AGREEMENT
    if not (agrees and agreement.confidence_difference <= MAX_CONFIDENCE_DIFFERENCE):
        raise ModelError(
            f"{card.name}: expected an exported file with the service's labels for "
            f"{MIN_LABEL_AGREEMENT:.1%} of the pixels and confidence within "
            f"{MAX_CONFIDENCE_DIFFERENCE:g}, got {agreement.label_agreement:.3%} and a difference "
            f"of {agreement.confidence_difference:.3g}"
        )


def metadata(
    folder: ModelFolder, stored: StoredCalibrator | None, agreement: ServiceAgreement
) -> dict[str, str]:
    """Return the certificate, the classes and the preprocessing as JSON, by key."""
    certificate: dict[str, object] = {
        "model": folder.card.name,
        "model_sha256": folder.sha256,
        "weights_sha256": folder.weights_sha256,
        "license": folder.card.license,
        "calibrator": None,
        "agreement": asdict(agreement),
    }
    if stored is not None:
        manifest = stored.manifest
        certificate |= {
            "calibrator": manifest.id,
            "method": manifest.method,
            "fitted_at": manifest.fitted_at,
            "images": manifest.images,
            "ece_before": manifest.ece_before,  # image-wise, 10 bins
            "ece_after": manifest.ece_after,
            "thresholds": [asdict(level) for level in manifest.thresholds],
        }
    return {
        CERTIFICATE: json.dumps(certificate),
        CLASSES: json.dumps([entry.name for entry in folder.card.output.classes]),
        PREPROCESSING: json.dumps(folder.card.input.model_dump(mode="json")),
    }
