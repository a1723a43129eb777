"""Validation data to upload: over-confident logits of three classes with labels.

Labels are drawn from softmax(logits / temperature), so the best temperature is known.
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

Array = NDArray[Any]
TEMPERATURE = 3.0
VOID = 255


def overconfident(
    images: int = 10, height: int = 8, width: int = 12, classes: int = 3, seed: int = 0
) -> tuple[Array, Array]:
    """Draw logits float32 [N,K,h,w] and labels uint8 [N,h,w], 10 % of them void."""
    rng = np.random.default_rng(seed)
    calibrated = 2 * rng.standard_normal((images, classes, height, width))
    noise = rng.gumbel(size=calibrated.shape)
    labels = (calibrated + noise).argmax(axis=1).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = VOID
    return (calibrated * TEMPERATURE).astype(np.float32), labels


def as_table(logits: Array, labels: Array, seed: int | None = None) -> tuple[Array, Array, Array]:
    """Convert maps to a table: logits [M,K], labels [M], image_index [M]; shuffled if seeded."""
    count, classes = logits.shape[:2]
    rows = np.moveaxis(logits, 1, -1).reshape(-1, classes)
    index = np.repeat(np.arange(count), labels[0].size)
    order = np.arange(len(rows))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order], labels.reshape(-1)[order], index[order]


def npy(values: Array) -> bytes:
    """Encode an array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def npz(compressed: bool = False, **arrays: Array) -> bytes:
    """Encode arrays as .npz."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def tensors(**arrays: Array) -> bytes:
    """Encode arrays as .safetensors."""
    return safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()})


def archive(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Encode files as a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return buffer.getvalue()
