"""What must hold of uploaded arrays before a fit may read them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.arrays import ArrayFile
from app.calibration.validation import IGNORE
from app.errors import ArgumentError

MAX_STRETCH = 1.5  # by which the two axes' strides may differ
PROBED = 4096  # pixels that are looked at to tell probabilities from logits
SUM_TOLERANCE = 4e-3  # within which probabilities in float16 add up to 1


class Contents(NamedTuple):
    """What a set holds that a fit can use."""

    images: int
    pixels: int
    maps: bool  # or a table of pixels


def check_classes(logits: ArrayFile, num_classes: int) -> None:
    """Raise ArgumentError unless the logits are of the model's classes."""
    if logits.shape[1] != num_classes:
        raise ArgumentError(f"expected logits of the model's {num_classes} classes, got {logits}")


def check_integers(array: ArrayFile) -> None:
    """Raise ArgumentError for any other type."""
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"expected {array.name} of integers, got {array}")


def check_grids(logits: ArrayFile, labels: ArrayFile) -> None:
    """Refuse labels coarser than the logits, or of another form, transposed ones above all."""
    strides = [
        pixels / cells for cells, pixels in zip(logits.shape[2:], labels.shape[1:], strict=True)
    ]
    if min(strides) < 1 or max(strides) > MAX_STRETCH * min(strides):
        raise ArgumentError(
            f"expected labels on the logits' grid or at the pictures' size, got {logits}, {labels}"
        )


def require_images(count: int) -> None:
    """Raise ArgumentError unless there are images for both parts of a fit."""
    if count < 2:
        raise ArgumentError(
            f"expected at least 2 images with labels, to fit on some and hold some out, got {count}"
        )


def checked_labels(
    labels: NDArray[Any], num_classes: int, ignore_index: int, where: str
) -> NDArray[np.int64]:
    """Copy labels of any integer type, the void value turned into IGNORE."""
    void = labels == ignore_index
    wrong = ((labels < 0) | (labels >= num_classes)) & ~void
    if wrong.any():
        raise ArgumentError(
            f"expected labels in 0..{num_classes - 1} or {ignore_index} for void, "
            f"got {labels[wrong].flat[0]} in {where}"
        )
    return np.where(void, IGNORE, labels.astype(np.int64))


def check_logits(logits: NDArray[Any], labelled: NDArray[np.bool_], where: str) -> None:
    """Raise ArgumentError unless [K,*grid] are logits wherever the grid is labelled."""
    _check_finite(logits, labelled, where)
    _refuse_probabilities(logits, labelled, where)


def _check_finite(logits: NDArray[Any], labelled: NDArray[np.bool_], where: str) -> None:
    """Refuse logits [K,*grid] that are NaN or infinite at a labelled place of the grid."""
    wrong = ~np.isfinite(logits).all(axis=0) & labelled
    if wrong.any():
        raise ArgumentError(
            f"expected finite logits at every labelled pixel, got NaN or infinity at "
            f"{int(wrong.sum())} in {where}"
        )


def _refuse_probabilities(logits: NDArray[Any], labelled: NDArray[np.bool_], where: str) -> None:
    """Refuse what is softmax's answer rather than its question: [K,*grid], finite where labelled.

    A fit would take it for a network that is hardly sure of anything.
    """
    places = np.flatnonzero(labelled)[:PROBED]
    seen = logits.reshape(len(logits), -1)[:, places].astype(np.float32)
    strictly_between = ((seen > 0) & (seen < 1)).any() and (seen >= 0).all()
    if strictly_between and (abs(seen.sum(axis=0) - 1) < SUM_TOLERANCE).all():
        raise ArgumentError(
            f"expected logits, got probabilities, which add up to 1 at each pixel of {where}; "
            f"their logarithms will do"
        )


def copied(values: NDArray[Any]) -> NDArray[Any]:
    """Copy out of a file, into this machine's byte order."""
    return np.array(values, values.dtype.newbyteorder("="), order="C")
