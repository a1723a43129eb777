"""Draw trees, hedges and bushes."""

from math import cos, sin

import numpy as np
from numpy.random import Generator
from PIL import Image

from training.scenes.camera import Pixels, Place
from training.scenes.canvas import Canvas, Label
from training.scenes.textures import Bytes, Colour, Floats, pick, scaled, to_bytes, value_noise

BARKS: tuple[Colour, ...] = ((58, 50, 44), (74, 68, 60), (44, 40, 36))
LEAVES: tuple[Colour, ...] = (
    (70, 84, 40), (56, 70, 36), (96, 96, 50), (44, 54, 34), (104, 84, 50),
)  # fmt: skip
TWIGS: Colour = (112, 104, 98)
TRUNKED = ("round", "bare")
LOWEST = {"round": 0.25, "bare": 0.2, "cone": 0.0, "hedge": 0.0}


def radius(shape: str, x: Floats, y: Floats) -> Floats:
    """Compute the distance from a crown's centre, about 1 at its outline, float32 [h, w].

    `x` and `y` are in -1..1.
    """
    if shape == "cone":
        slope = np.abs(x) / np.maximum(0.03, (y + 1) * 0.5) * 0.9
        return np.asarray(np.maximum(slope, np.abs(y)), np.float32)
    if shape == "hedge":
        return np.asarray(np.maximum(np.abs(y), np.abs(x)) * 0.8, np.float32)
    return np.asarray(np.sqrt(x * x + y * y), np.float32)


def cover(rng: Generator, shape: str, outline: Floats, fine: Floats) -> tuple[Bytes, Bytes]:
    """Return the masks of painted and of labelled pixels, uint8 [h, w] each."""
    height, width = outline.shape
    if shape == "bare":
        twigs = 0.6 * value_noise(rng, height, width, 2.2) + 0.5 * fine
        dense = np.clip(1.15 - outline, 0.0, 0.8) * rng.uniform(0.5, 0.85) + 0.45 * twigs
        paint = np.where(outline < 1.08, to_bytes(dense * 330), np.uint8(0))
        return paint, to_bytes((0.92 + 0.25 * twigs - outline) * 4000)
    holes = value_noise(rng, height, width, max(2.0, width / 14), 2)
    solid = (0.86 - outline + 0.10 * fine + 0.16 * np.minimum(holes, 0)) * 1200
    return to_bytes(solid), to_bytes((solid - 110) * 50)


def foliage(
    rng: Generator, size: tuple[int, int], shape: str, colour: Colour, light: float
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Draw a crown that fills a box of `size` (w, h): RGB colour, L paint mask and L label mask.

    `shape` is "round", "cone", "hedge" or "bare" (twigs with sky between them).
    `light` (-1..1) is the side the sun is on.
    """
    width, height = max(2, size[0] // 2), max(2, size[1] // 2)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    clump = value_noise(rng, height, width, max(3.0, width / 5), 4)
    fine = rng.random((height, width), dtype=np.float32) * 2 - 1
    tone = np.clip(0.8 + 0.36 * clump + 0.34 * fine - 0.24 * y + 0.25 * light * x, 0.12, 2.0)
    rgb = to_bytes(tone[..., None] * np.asarray(colour, np.float32))
    outline = radius(shape, x, y) + (0.10 if shape == "hedge" else 0.26) * clump
    paint, label = cover(rng, shape, outline, fine)
    return (
        Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR),
        Image.fromarray(paint).resize(size, Image.Resampling.BILINEAR),
        Image.fromarray(label).resize(size, Image.Resampling.NEAREST),
    )


def crown_spread(rng: Generator, shape: str) -> float:
    """Sample half the width of a crown as a fraction of the tree's height."""
    spread = rng.uniform(0.25, 0.5) if shape in TRUNKED else rng.uniform(0.12, 0.25)
    return rng.uniform(0.6, 2.0) if shape == "hedge" else spread


def crown_box(
    canvas: Canvas, at: Place, height: float, half: float, low: float
) -> tuple[int, int, int, int] | None:
    """Return a crown's canvas box (left, top, right, bottom); None if not in view.

    `height`, `low` (its lower end) and `half` (half its width) are in metres.
    """
    (x, z), width = at, canvas.image.width
    (left, top), (right, bottom) = canvas.camera.project(
        [(x - half, height, z), (x + half, low, z)]
    )
    x0, y0 = max(int(left), -300), max(int(top), -400)
    x1, y1 = min(int(right) + 2, width + 300), int(bottom) + 2
    hidden = x1 <= 0 or x0 >= width or y1 <= 0
    return None if hidden or x1 - x0 < 2 or y1 - y0 < 2 else (x0, y0, x1, y1)


def draw_tree(canvas: Canvas, at: Place, height: float, shape: str) -> None:
    """Draw a tree (trunk, boughs and crown), or a hedge or bush on the ground."""
    rng, sun, (x, z) = canvas.rng, canvas.lighting.sun, at
    canvas.begin(Label.TREE, z, rng.uniform(0.55, 1.0) if sun else 0.85)
    half = height * crown_spread(rng, shape)
    bark = pick(rng, BARKS)
    low = 0.3 if shape == "cone" else height * LOWEST[shape]
    box = crown_box(canvas, at, height, half, low)
    if box is None:
        return
    leaf = pick(rng, LEAVES)
    hue = scaled(TWIGS if shape == "bare" else leaf, canvas.tint)
    x0, y0, x1, y1 = box
    rgb, paint, label = foliage(rng, (x1 - x0, y1 - y0), shape, hue, -0.8 * sun)
    canvas.image.paste(rgb, (x0, y0), paint)
    canvas.objects.paste(canvas.thing, (x0, y0), label)
    if shape not in TRUNKED:
        return
    foot, fork, top = canvas.camera.project([(x, 0, z), (x, height * 0.42, z), (x, height, z)])
    girth = height * 0.035 * canvas.camera.focal / z
    wide, narrow = np.array((girth, 0.0)), np.array((girth * 0.6, 0.0))
    canvas.polygon(np.stack([foot - wide, foot + wide, fork + narrow, fork - narrow]), bark)
    if shape == "bare":
        draw_boughs(canvas, fork, top, girth, bark)


def draw_boughs(canvas: Canvas, fork: Pixels, top: Pixels, girth: float, bark: Colour) -> None:
    """Draw the branches of a bare tree, from the pixel `fork` [2] up towards `top` [2].

    Its twigs are in the texture of the crown.
    """
    (x, y), rise = fork.tolist(), float(fork[1] - top[1])
    upward = float(np.arctan2(top[1] - fork[1], top[0] - fork[0]))
    ink = scaled(bark, canvas.tint)
    limbs = [(x, y, upward + turn, rise * 0.5, girth) for turn in (-0.5, 0.0, 0.5)]
    while limbs:
        x, y, angle, extent, thick = limbs.pop()
        dx, dy = extent * cos(angle), extent * sin(angle)
        line, wide = (x, y, x + dx, y + dy), max(1, round(thick))
        canvas.pen.line(line, ink, wide)
        if wide > 1:
            canvas.marker.line(line, canvas.thing, wide)
        if extent > max(9.0, rise * 0.12):
            for part, turn in zip((0.45, 0.7, 0.95), canvas.rng.normal(0, 0.55, 3), strict=True):
                start = (x + dx * part, y + dy * part)
                limbs.append((*start, angle + turn, extent * 0.66, thick * 0.55))
