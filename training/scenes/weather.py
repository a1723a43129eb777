"""Kinds of weather, their light and their sky."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from training.scenes.textures import Colour, Tint, choose, to_bytes, value_noise


@dataclass(frozen=True)
class Climate:
    """Looks of a kind of weather.

    `odds` of meeting it, gains of the `ambient` light, colours of the sky at the `zenith` and
    the `horizon`, contrast of `clouds`, grey level of the `haze`, share of windows `lit` inside.
    """

    odds: float
    ambient: Tint
    zenith: Colour
    horizon: Colour
    clouds: float
    haze: float
    lit: float


CLIMATES = {
    "day": Climate(0.52, (1.06, 1.06, 1.06), (188, 218, 246), (250, 253, 254), 40, 225, 0.01),
    "dusk": Climate(0.16, (0.46, 0.48, 0.49), (92, 106, 124), (166, 162, 150), 55, 110, 0.12),
    "fog": Climate(0.10, (0.86, 0.87, 0.89), (196, 200, 204), (206, 208, 210), 5, 196, 0.01),
    "rain": Climate(0.12, (0.70, 0.72, 0.74), (150, 156, 164), (196, 200, 202), 28, 165, 0.01),
    "night": Climate(0.10, (0.24, 0.21, 0.19), (10, 12, 20), (44, 36, 34), 8, 22, 0.4),
}
WEATHERS = tuple(CLIMATES)


def sample_weather(rng: Generator) -> str:
    """One of `WEATHERS`, day about half the time."""
    return WEATHERS[rng.choice(len(WEATHERS), p=[climate.odds for climate in CLIMATES.values()])]


@dataclass(frozen=True)
class Lighting:
    """Gains of the `ambient` light, side of the `sun` (-1, 1; 0 hidden), light left in `shade`."""

    weather: str
    ambient: Tint
    sun: int
    shade: float

    @classmethod
    def sample(cls, rng: Generator, weather: str) -> "Lighting":
        """Light of one scene in the given weather."""
        gain = rng.uniform(0.8, 1.15)
        r, g, b = CLIMATES[weather].ambient
        sun = choose(rng, (-1, 1)) if weather == "day" and rng.random() < 0.75 else 0
        shade = rng.uniform(0.35, 0.6) if sun else 0.8
        return cls(weather, (r * gain, g * gain, b * gain), sun, shade)

    @property
    def climate(self) -> Climate:
        """Looks of the weather."""
        return CLIMATES[self.weather]

    @property
    def dark(self) -> bool:
        """Whether lamps are on."""
        return self.weather in ("dusk", "night")


def sky_image(rng: Generator, size: tuple[int, int], weather: str) -> Image.Image:
    """Gradient sky with clouds, RGB of `size` (w, h)."""
    climate = CLIMATES[weather]
    rows, columns = max(8, size[1] // 8), max(8, size[0] // 8)
    ramp = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** rng.uniform(0.25, 1.0)
    top = np.asarray(climate.zenith, np.float32) * rng.uniform(0.85, 1.2)
    low = np.asarray(climate.horizon, np.float32) * rng.uniform(0.95, 1.1)
    sky = np.repeat(top + (low - top) * np.minimum(1, ramp * 1.8), columns, axis=1)
    if weather == "day" and rng.random() < 0.55:  # washed-out, overexposed sky
        sky = sky + rng.uniform(20, 60)
    clouds = value_noise(rng, rows, columns, rows * rng.uniform(0.25, 0.7), 4)[..., None]
    sky = sky + clouds * (climate.clouds * rng.uniform(0.2, 1.0))
    return Image.fromarray(to_bytes(sky)).resize(size, Image.Resampling.BICUBIC)
