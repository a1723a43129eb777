"""Draw street furniture: lamps, traffic lights, signs, beacons, bollards and fences."""

from math import cos, pi, sin

import numpy as np

from training.scenes.camera import Place, Point, lift, plate
from training.scenes.canvas import Canvas, Label
from training.scenes.textures import WALLS, Colour, choose, pick, scaled, wall_texture

POLES = ("lamp", "light", "light", "sign", "sign", "sign", "plain", "beacon", "bollard")
POLE_HEIGHTS = {"lamp": 7.0, "light": 3.4, "sign": 2.8, "plain": 6.0, "beacon": 3.2, "bollard": 1.0}
THICK = {"bollard": 0.22, "lamp": 0.16, "beacon": 0.16}
METALS: tuple[Colour, ...] = ((70, 74, 76), (110, 114, 114), (36, 40, 40), (150, 152, 150))
RAILS: tuple[Colour, ...] = ((24, 26, 28), (90, 94, 94), (40, 60, 48), (180, 180, 176))
BOARDS: tuple[Colour, ...] = ((104, 84, 62), (70, 62, 54), (60, 74, 58), (140, 142, 140))
MASONRY = WALLS[:4] + WALLS[5:]
SIGNALS: tuple[Colour, ...] = ((235, 50, 40), (240, 170, 40), (60, 220, 150))
RIMS: tuple[Colour, ...] = (
    (180, 24, 30), (24, 60, 150), (226, 226, 220), (210, 180, 40), (20, 90, 60), (60, 40, 110),
)  # fmt: skip
FIELDS: tuple[Colour, ...] = ((226, 226, 220), (30, 70, 150), (30, 30, 34))


def draw_pole(canvas: Canvas, at: Place, height: float, kind: str) -> None:
    """Draw a pole of one of the kinds in `POLES`."""
    canvas.begin(Label.POLE, at[1], canvas.sample_light())
    grey, thick, top = pick(canvas.rng, METALS), THICK.get(kind, 0.1), lift(at, height)

    def band(low: float, high: float, metres: float, colour: Colour) -> None:
        canvas.stroke([lift(at, height * low), lift(at, height * high)], metres, colour)

    band(0, 1, thick, (220, 220, 216) if kind == "beacon" else grey)
    if kind in ("lamp", "beacon"):
        band(0, 0.2, thick * 1.4, scaled(grey, 0.8))
    if kind == "beacon":
        for low in (0.2, 0.5, 0.8):
            band(low, low + 0.14, thick, (24, 24, 24))
        canvas.blob(top, (0.22, 0.22), (230, 200, 50))
    elif kind == "lamp":
        draw_lantern(canvas, top, grey)
    elif kind == "light":
        draw_traffic_light(canvas, top)
    elif kind == "sign":
        draw_sign(canvas, top)


def draw_lantern(canvas: Canvas, top: Point, grey: Colour) -> None:
    """Draw arm and lantern of a street lamp on the pole that ends at `top`."""
    (x, y, z), dark = top, canvas.lighting.dark
    arm = (-1 if x > 0 else 1) * canvas.rng.uniform(0.5, 2.0)
    lantern = (x + arm, y + 0.4, z)
    canvas.stroke([top, (x + arm * 0.6, y + 0.35, z), lantern], 0.1, grey)
    scale = canvas.camera.scale(z)
    radii = (max(1.5 / scale, 0.35), max(1.5 / scale, 0.1))
    canvas.blob(lantern, radii, (255, 220, 160) if dark else grey, dark)
    if dark:
        at = canvas.camera.project([lantern])[0]
        canvas.shine(at, max(1.0, 0.4 * scale), (255, 190, 110))


def draw_traffic_light(canvas: Canvas, top: Point) -> None:
    """Draw one or two signal heads on the pole that ends at `top`."""
    rng, (x, height, z) = canvas.rng, top
    canvas.begin(Label.SIGN, z - 0.1)
    half = rng.uniform(0.12, 0.24)
    for y in (height, height * 0.62)[: rng.integers(1, 3)]:
        canvas.solid(plate(x, half, y - 1.0, y, z), (22, 22, 24))
        on = rng.integers(3)
        for k, colour in enumerate(SIGNALS):
            lens = (x, y - 0.2 - 0.3 * k, z)
            canvas.blob(lens, (0.09, 0.09), colour if k == on else (50, 44, 40), bool(k == on))
            if k == on and canvas.lighting.condition != "day":
                at = canvas.camera.project([lens])[0]
                canvas.shine(at, max(1.0, 0.15 * canvas.camera.scale(z)), colour)


def draw_sign(canvas: Canvas, top: Point) -> None:
    """Draw a traffic or shop sign facing the camera, its upper edge at `top`."""
    rng, (x, y, z) = canvas.rng, top
    canvas.begin(Label.SIGN, z - 0.1)
    size, shape = rng.uniform(0.28, 0.65), rng.integers(5)
    edge, inner = pick(rng, RIMS), pick(rng, FIELDS)
    up = pi / 2 * choose(rng, (-1, 1))
    tall = rng.uniform(1.2, 3.0)
    sides, turn, across, along = (
        (24, 0.0, 1.0, 1.0), (3, up, 1.0, 1.0), (8, pi / 8, 1.0, 1.0),
        (4, pi / 4, 1.6, 1.0), (4, pi / 4, 1.0, tall),
    )[shape]  # fmt: skip
    angles = (np.arange(sides) * 2 * pi / sides + turn).tolist()
    for factor, colour in ((size, edge), (size * 0.74, inner)):
        rim = [
            (x + factor * across * cos(t), y - size + factor * along * sin(t), z) for t in angles
        ]
        canvas.solid(rim, colour)
    for _ in range(rng.integers(0, 4)):  # symbol or lettering
        dx, dy = (rng.uniform(-0.3, 0.3, 2) * size).tolist()
        middle, half = y - size + dy, size * 0.09
        canvas.solid(plate(x + dx, size * 0.25, middle - half, middle + half, z), edge)


def draw_fence(canvas: Canvas, ends: tuple[Place, Place], kind: str) -> None:
    """Draw a fence between a near and a far place: "railing", "panel" or "wall"."""
    rng, (a, b), height = canvas.rng, ends, canvas.rng.uniform(0.8, 1.9)
    canvas.begin(Label.FENCE, (a[1] + b[1]) / 2, canvas.sample_light())
    left, right = canvas.camera.project([lift(a, 0), lift(b, 0)])[:, 0]
    corners = canvas.wall((a, b) if left < right else (b, a), height)
    if corners is None:
        return
    if kind == "railing":
        canvas.claim(corners)
        ink, gap = pick(rng, RAILS), rng.uniform(0.13, 0.4)
        for k in (0.05, 0.97):
            canvas.stroke([lift(a, height * k), lift(b, height * k)], 0.0, ink)
        draw_posts(canvas, _spaced(ends, gap), (0.025, height), ink)
        return
    colour = pick(rng, MASONRY if kind == "wall" else BOARDS)
    length = float(np.hypot(b[0] - a[0], b[1] - a[1]))
    ppm = min(24.0, max(4.0, 260 / length))
    size = (int(length * ppm) + 2, int(height * ppm) + 2)
    canvas.textured(wall_texture(rng, size, ppm, scaled(colour, 0.8), canvas.tint), corners)
    if kind == "panel":
        draw_posts(canvas, _spaced(ends, 1.6), (0.06, height), scaled(colour, 0.7))


def draw_posts(
    canvas: Canvas, feet: list[Place], size: tuple[float, float], colour: Colour
) -> None:
    """Draw the posts of a fence, their `size` (thickness, height) in metres."""
    for foot in feet:
        canvas.stroke([lift(foot, 0), lift(foot, size[1])], size[0], colour)


def _spaced(ends: tuple[Place, Place], gap: float) -> list[Place]:
    """Return places between two ends, about `gap` metres apart, 160 at most."""
    (ax, az), (bx, bz) = ends
    count = min(160, int(np.hypot(bx - ax, bz - az) / gap) + 2)
    return [(ax + (bx - ax) * k, az + (bz - az) * k) for k in np.linspace(0, 1, count).tolist()]
