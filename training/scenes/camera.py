"""Project world points to pixels of the windscreen camera.

World coordinates are metres: x right, y up from the road, z forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, sin

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.scenes.textures import Floats

Place = tuple[float, float]  # on the ground: x, z
Point = tuple[float, float, float]
Pixels = NDArray[np.float64]
NEAR, FAR = 1.0, 400.0


def lift(place: Place, y: float) -> Point:
    """Return the point `y` metres above a place on the ground."""
    return (place[0], y, place[1])


def between(p: Point, q: Point, fraction: float) -> Point:
    """Return the point at a `fraction` (0..1) of the way from p to q."""
    x, y, z = (a + (b - a) * fraction for a, b in zip(p, q, strict=True))
    return (x, y, z)


def rectangle(left: float, low: float, right: float, high: float) -> list[tuple[float, float]]:
    """Return the corners of an upright rectangle in its own plane."""
    return [(left, low), (right, low), (right, high), (left, high)]


def plate(x: float, half: float, low: float, high: float, z: float) -> list[Point]:
    """Return the corners of an upright rectangle facing the camera, `half` wide on either side."""
    return [(u, v, z) for u, v in rectangle(x - half, low, x + half, high)]


def homography(corners: Pixels, size: tuple[int, int]) -> list[float] | None:
    """Return 8 terms that map `corners` [4, 2] to a box of `size` (w, h); None if singular."""
    w, h = size
    system, target = np.zeros((8, 8)), np.array([0, 0, w, 0, w, h, 0, h], np.float64)
    for k, (x, y) in enumerate(corners):
        u, v = target[2 * k], target[2 * k + 1]
        system[2 * k] = (x, y, 1, 0, 0, 0, -u * x, -u * y)
        system[2 * k + 1] = (0, 0, 0, x, y, 1, -v * x, -v * y)
    try:
        return [float(term) for term in np.linalg.solve(system, target)]
    except np.linalg.LinAlgError:
        return None


@dataclass(frozen=True)
class Camera:
    """Pinhole camera at `height` metres, rolled by `roll` radians; the rest in canvas pixels."""

    focal: float
    centre_x: float
    horizon: float
    height: float
    roll: float

    @classmethod
    def sample(cls, rng: Generator, size: tuple[int, int]) -> "Camera":
        """Sample a camera for a canvas of `size` (w, h)."""
        return cls(
            focal=size[0] * rng.uniform(0.75, 1.25),
            centre_x=size[0] * rng.uniform(0.4, 0.6),
            horizon=size[1] * rng.uniform(0.38, 0.56),
            height=rng.uniform(1.15, 1.8),
            roll=rng.normal(0, 0.012),
        )

    def scale(self, z: float) -> float:
        """Return pixels per metre at distance z."""
        return self.focal / max(z, NEAR)

    def project(self, points: Sequence[Point] | Pixels) -> Pixels:
        """Project world points [N, 3] to canvas pixels, float64 [N, 2]."""
        world = np.asarray(points, np.float64)
        scale = self.focal / np.maximum(world[:, 2], NEAR)
        across, down = world[:, 0] * scale, (self.height - world[:, 1]) * scale
        c, s = cos(self.roll), sin(self.roll)
        pixels = np.empty((len(world), 2))
        pixels[:, 0] = self.centre_x + c * across - s * down
        pixels[:, 1] = self.horizon + s * across + c * down
        return np.clip(pixels, -20000, 20000)

    def ground(self, height: int, width: int) -> tuple[Floats, Floats]:
        """Compute x and z (m) of the ground in each pixel, float32 [height, width]; z inf above."""
        dy = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - self.horizon)
        dx = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5 - self.centre_x)
        c, s = np.float32(cos(self.roll)), np.float32(sin(self.roll))
        down = c * dy - s * dx
        distance = np.float32(self.focal * self.height) / np.maximum(down, np.float32(1e-3))
        z = np.where(down > 0, distance, np.float32(np.inf))
        x = (c * dx + s * dy) * np.minimum(z, np.float32(1e4)) / np.float32(self.focal)
        return np.asarray(x, np.float32), np.asarray(z, np.float32)
