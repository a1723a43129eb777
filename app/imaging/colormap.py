"""A perceptually uniform colour map, computed: lightness rises in equal steps of CIELAB.

Hue runs from violet over red to yellow, so the map also reads in grey and with the common
colour-vision deficiencies; chroma is as high as sRGB allows up to a bound.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

D65 = np.array([0.95047, 1.0, 1.08883])
XYZ_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)


def lab_to_linear_rgb(lab: Floats) -> Floats:
    """CIELAB [...,3] (D65) to linear RGB [...,3], outside 0..1 where sRGB has no such colour."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * D65
    linear: Floats = xyz @ XYZ_TO_RGB.T
    return linear


def heat_colors(steps: int = 256) -> NDArray[np.uint8]:
    """Build the map: uint8 [steps,3], lightness 8 to 94, hue 300 to 460 degrees."""
    position = np.linspace(0, 1, steps)
    lightness = 8 + 86 * position
    hue = np.deg2rad(300 + 160 * position)
    chroma = np.zeros(steps)
    for candidate in np.arange(0, 66, 0.5):
        lab = np.stack([lightness, candidate * np.cos(hue), candidate * np.sin(hue)], axis=-1)
        rgb = lab_to_linear_rgb(lab)
        chroma = np.where(((rgb >= 0) & (rgb <= 1)).all(axis=-1), candidate, chroma)
    smooth = np.convolve(np.pad(chroma, 12, mode="edge"), np.ones(25) / 25, mode="valid")
    chroma = np.minimum(chroma, smooth)
    linear = lab_to_linear_rgb(
        np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    ).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors: NDArray[np.uint8] = np.rint(srgb * 255).astype(np.uint8)
    return colors


HEAT = heat_colors()
