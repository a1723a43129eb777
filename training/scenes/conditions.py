"""Define the conditions of a scene (day, dusk, fog, rain, night), their light and their sky."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from training.scenes.textures import Colour, Tint, choose, to_bytes, value_noise


@dataclass(frozen=True)
class Appearance:
    """Appearance of a scene under one condition.

    `probability` of drawing it, gains of the `ambient` light, colours of the sky at the `zenith`
    and the `horizon`, contrast of `clouds`, grey level (0..255) of the `haze`, fraction of windows
    `lit` inside.
    """

    probability: float
    ambient: Tint
    zenith: Colour
    horizon: Colour
    clouds: float
    haze: float
    lit: float


APPEARANCES = {
    "day": Appearance(0.52, (1.06, 1.06, 1.06), (188, 218, 246), (250, 253, 254), 40, 225, 0.01),
    "dusk": Appearance(0.16, (0.46, 0.48, 0.49), (92, 106, 124), (166, 162, 150), 55, 110, 0.12),
    "fog": Appearance(0.10, (0.86, 0.87, 0.89), (196, 200, 204), (206, 208, 210), 5, 196, 0.01),
    "rain": Appearance(0.12, (0.70, 0.72, 0.74), (150, 156, 164), (196, 200, 202), 28, 165, 0.01),
    "night": Appearance(0.10, (0.24, 0.21, 0.19), (10, 12, 20), (44, 36, 34), 8, 22, 0.4),
}
CONDITIONS = tuple(APPEARANCES)


def sample_condition(rng: Generator) -> str:
    """Sample one of `CONDITIONS`, day about half the time."""
    probabilities = [appearance.probability for appearance in APPEARANCES.values()]
    return CONDITIONS[rng.choice(len(CONDITIONS), p=probabilities)]


@dataclass(frozen=True)
class Lighting:
    """Gains of the `ambient` light, side of the `sun` (-1, 1; 0 hidden), light left in `shade`."""

    condition: str
    ambient: Tint
    sun: int
    shade: float

    @classmethod
    def sample(cls, rng: Generator, condition: str) -> "Lighting":
        """Sample the light of one scene under a condition."""
        gain = rng.uniform(0.8, 1.15)
        r, g, b = APPEARANCES[condition].ambient
        sun = choose(rng, (-1, 1)) if condition == "day" and rng.random() < 0.75 else 0
        shade = rng.uniform(0.35, 0.6) if sun else 0.8
        return cls(condition, (r * gain, g * gain, b * gain), sun, shade)

    @property
    def appearance(self) -> Appearance:
        """Return the appearance under the condition."""
        return APPEARANCES[self.condition]

    @property
    def dark(self) -> bool:
        """Return whether lamps are on."""
        return self.condition in ("dusk", "night")


def sky_image(rng: Generator, size: tuple[int, int], condition: str) -> Image.Image:
    """Draw a gradient sky with clouds, RGB of `size` (w, h)."""
    appearance = APPEARANCES[condition]
    rows, columns = max(8, size[1] // 8), max(8, size[0] // 8)
    ramp = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** rng.uniform(0.25, 1.0)
    top = np.asarray(appearance.zenith, np.float32) * rng.uniform(0.85, 1.2)
    low = np.asarray(appearance.horizon, np.float32) * rng.uniform(0.95, 1.1)
    sky = np.repeat(top + (low - top) * np.minimum(1, ramp * 1.8), columns, axis=1)
    if condition == "day" and rng.random() < 0.55:  # washed-out, overexposed sky
        sky = sky + rng.uniform(20, 60)
    clouds = value_noise(rng, rows, columns, rows * rng.uniform(0.25, 0.7), 4)[..., None]
    sky = sky + clouds * (appearance.clouds * rng.uniform(0.2, 1.0))
    return Image.fromarray(to_bytes(sky)).resize(size, Image.Resampling.BICUBIC)
