"""Sample colours (display-space RGB, 0..255), noise and surface textures."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Colour = tuple[int, int, int]
Tint = tuple[float, float, float]
Option = TypeVar("Option")

WALLS: tuple[Colour, ...] = (
    (150, 108, 84), (168, 140, 104), (122, 84, 70), (190, 178, 152), (205, 202, 194),
    (146, 140, 130), (104, 98, 92), (176, 160, 128), (128, 122, 118), (84, 78, 74),
)  # fmt: skip
FASCIAS: tuple[Colour, ...] = (
    (150, 24, 28), (24, 44, 100), (20, 70, 44), (190, 170, 60), (30, 30, 34), (200, 200, 196),
    (40, 90, 130),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (24, 24, 28), (50, 52, 56), (120, 124, 128), (150, 154, 158), (176, 180, 184),
    (226, 226, 224), (36, 46, 86), (124, 20, 24), (24, 60, 46), (96, 104, 120), (60, 84, 120),
    (150, 140, 116), (190, 160, 40),
)  # fmt: skip


def choose(rng: Generator, options: Sequence[Option]) -> Option:
    """Sample one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def pick(rng: Generator, options: Sequence[Colour]) -> Colour:
    """Sample one of the colours, each channel varied by at most 10."""
    r, g, b = choose(rng, options)
    dr, dg, db = rng.integers(-10, 11, 3).tolist()
    return (max(0, r + dr), max(0, g + dg), max(0, b + db))


def scaled(colour: Colour, factor: float | Tint) -> Colour:
    """Multiply a colour by a factor (or one factor per channel), clipped to 0..255."""
    factors = (factor,) * 3 if isinstance(factor, float) else factor
    r, g, b = (int(min(255.0, max(0.0, c * f))) for c, f in zip(colour, factors, strict=True))
    return (r, g, b)


def to_bytes(values: NDArray[np.floating]) -> Bytes:
    """Clip a float array to 0..255 and convert it to uint8 of the same shape."""
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def value_noise(rng: Generator, height: int, width: int, cell: float, octaves: int = 1) -> Floats:
    """Sample smooth noise, float32 [height, width], about -1..1.

    Its largest blobs are `cell` pixels wide.
    """
    total: Floats = np.zeros((height, width), np.float32)
    weight, norm = 1.0, 0.0
    for _ in range(octaves):
        rows, columns = max(2, int(height / cell) + 2), max(2, int(width / cell) + 2)
        grid = rng.random((rows, columns), dtype=np.float32) * 2 - 1
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BILINEAR)
        total += np.float32(weight) * np.asarray(layer)
        norm += weight * weight
        weight, cell = weight * 0.6, max(1.0, cell / 2.3)
    return np.asarray(total / np.float32(norm**0.5), np.float32)


def courses(rng: Generator, size: tuple[int, int], ppm: float) -> Floats:
    """Draw rows of bricks or blocks, float32 [height, width] about 1, for a `size` (w, h)."""
    course = choose(rng, (0.12, 0.15, 0.22, 0.4))
    y = np.arange(size[1])[:, None] / (ppm * course)
    x = np.arange(size[0])[None, :] / (ppm * course * 2.2)
    tones = rng.uniform(0.92, 1.08, (32, 32)).astype(np.float32)
    row = y.astype(np.int64)
    bricks = tones[row % 32, (x + 0.5 * (row % 2)).astype(np.int64) % 32]
    return bricks * np.where(y % 1 < 0.16, np.float32(1.14), np.float32(1))


def wall_texture(
    rng: Generator, size: tuple[int, int], ppm: float, colour: Colour, tint: Tint
) -> Image.Image:
    """Draw a brick, stone or plaster surface, RGB of `size` (w, h); `ppm` is pixels per metre."""
    width, height = size
    surface = 1 + 0.10 * value_noise(rng, height, width, max(2.0, ppm * 1.5), 3)
    if ppm > 9 and rng.random() < 0.6:
        surface = surface * courses(rng, size, ppm)
    surface = surface * np.linspace(1.04, 0.9, height, dtype=np.float32)[:, None]
    base = np.asarray(colour, np.float32) * np.asarray(tint, np.float32)
    return Image.fromarray(to_bytes(surface[..., None] * base))
