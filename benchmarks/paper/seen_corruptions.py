"""Corrupt images by weather, noise, blur or contrast; labels remain valid.

The rows `..., copies` of the study are fitted on images with these corruptions as well. Kinds and
five strengths follow Hendrycks and Dietterich (ICLR 2019); the implementations differ and need no
depth map.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.errors import ArgumentError

STRENGTHS = (1, 2, 3, 4, 5)

ImageArray = NDArray[np.uint8]
Floats = NDArray[np.float32]
Generator = np.random.Generator


def corrupt(image: ImageArray, kind: str, strength: int, seed: int = 0) -> ImageArray:
    """Corrupt uint8 RGB [H,W,3] by one kind at a strength of 1 (slight) to 5 (severe).

    The same seed gives the same image. Raises ArgumentError for another kind or strength.
    """
    if kind not in KINDS or strength not in STRENGTHS:
        raise ArgumentError(
            f"expected one of {', '.join(KINDS)} at a strength of 1 to 5, got {kind} at {strength}"
        )
    severity = (strength - 1) / (len(STRENGTHS) - 1)
    scaled = image.astype(np.float32) / np.float32(255)
    corrupted = KINDS[kind](scaled, severity, np.random.default_rng(seed))
    return np.rint(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)


def fog(image: Floats, severity: float, rng: Generator) -> Floats:
    """Blend in light grey of varying density, more at the top, where street scenes are farther."""
    height, width = image.shape[:2]
    distance = np.clip(1.3 - 1.1 * np.linspace(0, 1, height, dtype=np.float32), 0.15, 1)
    drifts = 0.75 + 0.5 * smooth_noise((height, width), 5, rng)
    density = (0.6 + 2.0 * severity) * distance[:, None] * drifts
    clear = np.exp(-density)[..., None]
    grey = np.float32(rng.uniform(0.72, 0.85))
    return cast(Floats, image * clear + grey * (1 - clear))


def night(image: Floats, severity: float, rng: Generator) -> Floats:
    """Darken by a gamma curve and exposure, tint, and add sensor noise."""
    dark = image ** np.float32(1.2 + 0.8 * severity) * np.float32(0.55 - 0.43 * severity)
    tint = np.array([1.0, 0.92, 0.85], np.float32) if rng.random() < 0.5 else (
        np.array([0.85, 0.92, 1.0], np.float32))  # fmt: skip
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return cast(Floats, dark * tint + grain * np.float32(0.006 + 0.024 * severity))


def rain(image: Floats, severity: float, rng: Generator) -> Floats:
    """Reduce saturation and contrast, and draw parallel streaks."""
    height, width = image.shape[:2]
    drops = (rng.random((height, width)) < 0.004 + 0.016 * severity).astype(np.float32)
    length = int(rng.integers(9, 19) * height / 360) + 3
    slant = rng.uniform(-0.35, 0.35)
    streaks = np.zeros_like(drops)
    for step in range(length):
        streaks += np.roll(drops, (step, round(step * slant)), (0, 1))
    streaks = np.minimum(streaks, 1) * np.float32(0.25 + 0.25 * severity)
    veil = np.float32(0.15 + 0.25 * severity)
    grey = image.mean(axis=2, keepdims=True)
    wet = (image * 0.8 + grey * 0.2) * (1 - veil) + veil * 0.6
    return cast(Floats, wet + (0.9 - wet) * streaks[..., None])


def noise(image: Floats, severity: float, rng: Generator) -> Floats:
    """Add Gaussian noise to every channel."""
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return cast(Floats, image + grain * np.float32(0.05 + 0.20 * severity))


def blur(image: Floats, severity: float, rng: Generator) -> Floats:  # noqa: ARG001
    """Blur by a Gaussian whose radius is proportional to the image height."""
    radius = (1.0 + 3.5 * severity) * image.shape[0] / 360
    pixels = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    soft = pixels.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, np.float32) / np.float32(255)


def contrast(image: Floats, severity: float, rng: Generator) -> Floats:  # noqa: ARG001
    """Scale the differences from the image's mean colour."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return cast(Floats, mean + (image - mean) * np.float32(0.5 - 0.4 * severity))


def smooth_noise(shape: tuple[int, int], cells: int, rng: Generator) -> Floats:
    """Draw a smooth random field [*shape] in 0..1, interpolated from `cells` x `cells` values."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    field = coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(field, np.float32), 0, 1)


KINDS: Mapping[str, Callable[[Floats, float, Generator], Floats]] = MappingProxyType(
    {"fog": fog, "night": night, "rain": rain, "noise": noise, "blur": blur, "contrast": contrast}
)
