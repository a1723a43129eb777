"""Perceptual properties of the colour map, checked in CIELAB."""

import numpy as np
from numpy.typing import NDArray

from app.imaging.colormap import HEAT

RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
D65 = np.array([0.95047, 1.0, 1.08883])


def cielab(colors: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert sRGB uint8 [N,3] to CIELAB [N,3] under D65."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ RGB_TO_XYZ.T / D65
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def test_cielab_of_white_and_black_is_neutral():
    neutral = cielab(np.array([[255, 255, 255], [0, 0, 0]], np.uint8))
    assert np.allclose(neutral, [[100, 0, 0], [0, 0, 0]], atol=0.02)


def test_colors_are_256_and_read_only():
    assert HEAT.shape == (256, 3)
    assert HEAT.dtype == np.uint8
    assert not HEAT.flags.writeable


def test_lightness_rises_in_equal_steps():
    lightness = cielab(HEAT)[:, 0]
    assert np.abs(lightness - np.linspace(8, 94, 256)).max() < 0.6  # rounding to 8 bits
    assert (lightness[4:] > lightness[:-4]).all()


def test_ends_are_dark_and_bright():
    assert HEAT[0].max() < 80
    assert HEAT[255].min() > 100
    assert cielab(HEAT)[[0, 255], 0].round().tolist() == [8, 94]


def test_hue_runs_from_violet_over_red_to_yellow():
    _, a, b = cielab(HEAT).T
    saturated = np.hypot(a, b) > 10  # at low chroma, rounding to 8 bits moves the hue
    hue = np.rad2deg(np.arctan2(b, a))
    difference = (hue - np.linspace(300, 460, 256) + 180) % 360 - 180
    assert saturated.sum() > 200
    assert np.abs(difference[saturated]).max() < 5


def test_neighbouring_colors_are_close():
    assert np.linalg.norm(np.diff(cielab(HEAT), axis=0), axis=1).max() < 4
