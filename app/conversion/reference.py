"""Compare an imported model with reference logits of one image from its own framework."""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from app.errors import ArgumentError, ModelError
from app.inference.outputs import MIN_PROBABILITY
from app.inference.predictor import Predictor, PreparedImage

MIN_LABEL_AGREEMENT = 0.999


@dataclass(frozen=True)
class Agreement:
    """Largest absolute difference of logits, and fraction of pixels with the same label.

    With an activation on the card the difference is that of log-probabilities from MIN_PROBABILITY
    on: a pixel's logits are known up to a constant.
    """

    largest_difference: float
    label_agreement: float


def read_reference(path: Path) -> Tensor:
    """Read logits float32 [K,h,w], or [1,K,h,w], from a .npy file, or from a .pt of torch.save.

    Raises ArgumentError for other files and for values that are no logits.
    """
    try:
        if path.suffix == ".npy":
            values: object = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise ArgumentError(
            f"--reference: expected logits in a .npy file, or a tensor in a .pt file, "
            f"got {path.name}: {error}"
        ) from error
    if not isinstance(values, Tensor):
        raise ArgumentError(f"--reference: expected a tensor, got {type(values).__name__}")
    logits = values[0] if values.ndim == 4 and len(values) == 1 else values
    if logits.ndim != 3 or not logits.is_floating_point() or not logits.numel():
        raise ArgumentError(
            f"--reference: expected float logits [K,h,w], got {logits.dtype} {list(values.shape)}"
        )
    if logits.min() >= 0 and logits.max() <= 1:
        raise ArgumentError(
            "--reference: expected logits, got values in 0..1: save the values before the "
            "activation, or their logarithms"
        )
    return logits.float()


def compare(predictor: Predictor, image: NDArray[np.uint8], reference: Tensor) -> Agreement:
    """Compare a model's logits of an image, uint8 RGB [H,W,3], with reference logits [K,h,w].

    The reference is on the network's grid or at the image's size, to which the model's logits are
    then upsampled bilinearly. Raises ArgumentError for any other shape.
    """
    prepared = predictor.prepare_windows(image)
    logits = predictor.grid(prepared)
    grid = tuple(logits.shape[1:])
    if len(reference) == 1 and len(logits[0]) == 2:  # the log-odds of class 1
        reference = torch.cat([torch.zeros_like(reference), reference])
    if reference.shape[1:] != grid[1:]:
        logits = at_image_size(logits, prepared)
    if reference.shape != logits.shape[1:]:
        raise ArgumentError(
            f"--reference: expected logits {list(grid)}, or of the image's size, "
            f"{list(prepared.geometry.image)}, got {list(reference.shape)}"
        )
    agreement = (logits[0].argmax(0) == reference.argmax(0)).double().mean().item()
    if predictor.folder.card.output.activation != "none":
        floor = math.log(MIN_PROBABILITY)
        logits = logits.log_softmax(1).clamp_min(floor)
        reference = reference.log_softmax(0).clamp_min(floor)
    return Agreement((logits[0] - reference).abs().max().item(), agreement)


def at_image_size(logits: Tensor, prepared: PreparedImage) -> Tensor:
    """Upsample logits [1,K,h,w] to the image's size, without the padding."""
    geometry = prepared.geometry
    padded = F.interpolate(logits, geometry.padded, mode="bilinear")
    resized = padded[:, :, : geometry.resized[0], : geometry.resized[1]]
    return F.interpolate(resized, geometry.image, mode="bilinear")


def require_agreement(agreement: Agreement) -> None:
    """Raise ModelError where fewer labels agree than MIN_LABEL_AGREEMENT."""
    if not agreement.label_agreement >= MIN_LABEL_AGREEMENT:
        raise ModelError(
            f"expected the labels of the reference for {MIN_LABEL_AGREEMENT:.1%} of its pixels, "
            f"got {agreement.label_agreement:.2%}, and logits that differ by up to "
            f"{agreement.largest_difference:.3g}: check mean, std, channels, size and the output"
        )
