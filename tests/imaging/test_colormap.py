"""The heat map's promise is checked the other way round: from sRGB back to CIELAB."""

import numpy as np
from numpy.typing import NDArray

from app.imaging.colormap import HEAT, heat_colors, lab_to_linear_rgb

RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
D65 = np.array([0.95047, 1.0, 1.08883])


def lab(colors: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB uint8 [N,3] to CIELAB [N,3]."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ RGB_TO_XYZ.T / D65
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def test_heat_has_a_color_for_each_level():
    assert HEAT.shape == (256, 3)
    assert HEAT.dtype == np.uint8


def test_heat_lightness_rises_in_equal_steps():
    lightness = lab(HEAT)[:, 0]
    assert np.abs(lightness - np.linspace(8, 94, 256)).max() < 0.6  # rounding to 8 bits
    assert (lightness[4:] > lightness[:-4]).all()


def test_heat_runs_from_dark_to_bright():
    assert HEAT[0].max() < 80
    assert HEAT[255].min() > 100
    assert lab(HEAT)[[0, 255], 0].round().tolist() == [8, 94]


def test_heat_has_no_jump_in_color():
    assert np.linalg.norm(np.diff(lab(HEAT), axis=0), axis=1).max() < 4


def test_heat_of_fewer_steps_has_the_same_ends():
    few = heat_colors(64).astype(int)
    assert np.abs(few[[0, -1]] - HEAT[[0, -1]]).max() <= 12


def test_lab_of_white_and_black_is_neutral():
    rgb = lab_to_linear_rgb(np.array([[100.0, 0, 0], [0, 0, 0]]))
    assert np.allclose(rgb, [[1, 1, 1], [0, 0, 0]], atol=1e-4)
