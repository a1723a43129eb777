"""Draw cars, vans and buses."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi, sin

import numpy as np

from training.scenes.camera import Pixels, Place, Point, rectangle
from training.scenes.canvas import Canvas, Label
from training.scenes.textures import FASCIAS, PAINTS, Colour, pick, scaled


@dataclass(frozen=True)
class Body:
    """Vehicle shape: length, width and height in metres; the rest in fractions of these.

    `taper` is the roof's width; `profile` (along, up) runs from the rear over the roof to the
    front, `glass` are its segments that are screens; `windows` the side glass, divided by `posts`.
    """

    size: tuple[float, float, float]
    taper: float
    glass: tuple[int, ...]
    profile: tuple[tuple[float, float], ...]
    windows: tuple[tuple[float, float], ...]
    posts: int = 1


HATCH = Body(
    (3.9, 1.7, 1.46), 0.8, (2, 6),
    ((0.01, 0.18), (0.0, 0.36), (0.01, 0.6), (0.07, 0.93), (0.17, 1.0), (0.5, 0.99),
     (0.57, 0.95), (0.76, 0.66), (0.93, 0.58), (0.99, 0.42), (0.99, 0.18)),
    ((0.1, 0.64), (0.16, 0.92), (0.54, 0.93), (0.71, 0.66)),
)  # fmt: skip
SALOON = Body(
    (4.5, 1.75, 1.42), 0.78, (3, 7),
    ((0.01, 0.18), (0.0, 0.4), (0.01, 0.64), (0.15, 0.69), (0.27, 0.95), (0.36, 1.0),
     (0.54, 0.99), (0.6, 0.95), (0.75, 0.67), (0.95, 0.56), (0.99, 0.42), (0.99, 0.18)),
    ((0.2, 0.69), (0.3, 0.92), (0.56, 0.93), (0.7, 0.67)),
)  # fmt: skip
VAN = Body(
    (5.0, 2.0, 2.2), 0.92, (1, 5),
    ((0.0, 0.16), (0.0, 0.55), (0.0, 0.86), (0.02, 0.98), (0.7, 1.0),
     (0.76, 0.96), (0.87, 0.56), (0.98, 0.46), (1.0, 0.16)),
    ((0.62, 0.58), (0.62, 0.88), (0.74, 0.88), (0.83, 0.58)),
)  # fmt: skip
BUS = Body(
    (10.0, 2.5, 3.1), 0.97, (1, 5),
    ((0.0, 0.12), (0.0, 0.55), (0.0, 0.86), (0.005, 1.0), (0.98, 1.0),
     (0.99, 0.9), (1.0, 0.4), (1.0, 0.12)),
    ((0.03, 0.5), (0.03, 0.82), (0.95, 0.82), (0.95, 0.45)), posts=5,
)  # fmt: skip
PARKED = (HATCH, HATCH, HATCH, SALOON, SALOON, VAN)
DRIVEN = (*PARKED, BUS)


TINTED: tuple[Colour, ...] = ((110, 118, 124), (70, 76, 80))
AXLES = (0.17, 0.81)


@dataclass(frozen=True)
class Vehicle:
    """Draw a `body` of `size` (length, width, height; m) at a place, rotated by `yaw` radians.

    Its points are (along 0..1, across -1..1, up 0..1).
    """

    canvas: Canvas
    body: Body
    size: tuple[float, float, float]
    at: Place
    yaw: float
    paint: Colour
    glass: Colour

    def place(self, points: Sequence[Point]) -> Pixels:
        """Project vehicle points [N, 3] to canvas pixels [N, 2]."""
        p = np.asarray(points, np.float64)
        (length, width, height), c, s = self.size, cos(self.yaw), sin(self.yaw)
        narrow = 1 - (1 - self.body.taper) * np.maximum(0, p[:, 2] - 0.6) / 0.4
        along, across = (p[:, 0] - 0.5) * length, p[:, 1] * narrow * width / 2
        world = np.empty((len(p), 3))
        world[:, 0] = self.at[0] + along * s + across * c
        world[:, 1] = p[:, 2] * height
        world[:, 2] = self.at[1] + along * c - across * s
        return self.canvas.camera.project(world)

    def fill(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self.canvas.polygon(self.place(points), colour)

    def flank(self, side: float, outline: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon (along, up) on one side."""
        self.fill([(along, side, up) for along, up in outline], colour)

    def shadow(self) -> None:
        """Draw the shadow below; its label remains road."""
        outline = self.place([(t, w, 0.0) for t, w in rectangle(-0.03, -1.1, 1.03, 1.1)])
        self.canvas.pen.polygon(outline.ravel().tolist(), scaled((26, 26, 28), self.canvas.tint))

    def wheel(self, along: float, across: float, radius: float, grey: int) -> None:
        """Draw a disc of `radius` metres at a wheel's place."""
        rx, ry, up = radius / self.size[0], radius / self.size[2], 0.31 / self.size[2]
        turns = [k * pi / 6 for k in range(12)]
        rim = [(along + rx * cos(t), up + ry * sin(t)) for t in turns]
        self.flank(across, rim, (grey, grey, grey + 2))

    def strips(self, toward: float) -> None:
        """Draw rear, roof, screens and bonnet, seen from `toward` metres ahead."""
        (length, _, height), found = self.size, list[tuple[float, int]]()
        for k, ((l0, h0), (l1, h1)) in enumerate(pairwise(self.body.profile)):
            ahead = toward - ((l0 + l1) / 2 - 0.5) * length
            rise = self.canvas.camera.height - (h0 + h1) / 2 * height
            if (l1 - l0) * length * rise - (h1 - h0) * height * ahead > 0:
                found.append((abs(ahead), k))
        for _, k in sorted(found, reverse=True):
            self.strip(k)

    def strip(self, k: int) -> None:
        """Draw segment k of the profile, with its screen if it has one."""
        (length, _, height), ((l0, h0), (l1, h1)) = self.size, self.body.profile[k : k + 2]
        dl, dh = l1 - l0, h1 - h0
        flat, steep = abs(dl) * length, abs(dh) * height
        tone = 0.72 + 0.5 * flat / (flat + steep) if max(h0, h1) > 0.3 else 0.5
        corners = [(l0, -1.0, h0), (l0, 1.0, h0), (l1, 1.0, h1), (l1, -1.0, h1)]
        self.fill(corners, scaled(self.paint, tone))
        if k in self.body.glass:
            shine = scaled(self.glass, self.canvas.rng.uniform(0.8, 2.6))
            for left, right, colour in ((0.08, 0.08, self.glass), (0.42, 0.3, shine)):
                edge = ((left, -0.9), (right, 0.9), (0.92, 0.86), (0.92, -0.86))
                self.fill([(l0 + dl * t, w, h0 + dh * t) for t, w in edge], colour)

    def side(self, side: float) -> None:
        """Draw the flank on one side (-1 or 1): panels, sill, windows with posts, wheels."""
        rng, windows = self.canvas.rng, self.body.windows
        self.flank(side, self.body.profile, scaled(self.paint, rng.uniform(0.6, 1.0)))
        for low, high, tone in ((0.2, 0.42, rng.uniform(0.5, 0.8)), (0.12, 0.26, 0.35)):
            self.flank(side, rectangle(0.01, low, 0.99, high), scaled(self.paint, tone))
        self.flank(side * 1.01, windows, self.glass)
        (_, low), (left, high), (right, _) = windows[:3]
        for post in np.linspace(left, right, self.body.posts + 2)[1:-1].tolist():
            bar = rectangle(post, low, post + 0.02, high)
            self.flank(side * 1.02, bar, scaled(self.paint, 0.7))
        hub = int(rng.integers(60, 170))
        for along in AXLES:
            for radius, grey in ((0.37, 14), (0.31, 24), (0.19, hub)):
                self.wheel(along, side, radius, grey)

    def end(self, front: bool) -> None:
        """Draw lamps, number plate, bumper and grille of the front or the rear."""
        canvas, rng, along = self.canvas, self.canvas.rng, 1.0 if front else -0.002

        def box(left: float, low: float, right: float, high: float) -> list[Point]:
            return [(along, across, up) for across, up in rectangle(left, low, right, high)]

        lamp: Colour = (245, 240, 215) if front else (170, 20, 24)
        lighting, scale = canvas.lighting, canvas.camera.scale(self.at[1])
        on = lighting.condition != "day" and rng.random() < (0.9 if lighting.dark else 0.5)
        low, high = (0.4, 0.5) if front else (0.42, 0.58)
        half = rng.uniform(0.07, 0.17)
        for w in (-0.97 + half, 0.97 - half):
            corners = self.place(box(w - half, low, w + half, high))
            canvas.polygon(corners, lamp if on or not front else (190, 192, 190), glow=on)
            if on:
                radius = max(1.2, scale * (0.22 if front else 0.11))
                canvas.shine(corners.mean(axis=0).tolist(), radius, lamp)
        self.fill(box(-0.3, 0.3, 0.3, 0.37), (225, 225, 215) if front else (215, 185, 60))
        self.fill(box(-0.97, 0.17, 0.97, 0.26), (34, 34, 36))
        if front:
            self.fill(box(-0.55, 0.4, 0.55, 0.48), (30, 30, 32))


def draw_vehicle(canvas: Canvas, at: Place, yaw: float, body: Body) -> None:
    """Draw a vehicle that drives towards `yaw` (0 away from the camera, pi towards it)."""
    rng, (x, z) = canvas.rng, at
    length, width, height = (v * rng.uniform(0.93, 1.07) for v in body.size)
    if z - abs(cos(yaw)) * length / 2 - abs(sin(yaw)) * width / 2 < 4.0:
        return
    canvas.begin(Label.CAR, z - length / 4, canvas.sample_light())
    paint = pick(rng, FASCIAS if body is BUS else PAINTS)
    glass = (34, 38, 42) if rng.random() < 0.6 else pick(rng, TINTED)
    vehicle = Vehicle(canvas, body, (length, width, height), at, yaw, paint, glass)
    vehicle.shadow()
    for along in AXLES:
        for across in (-0.9, 0.9):
            vehicle.wheel(along, across, 0.31, 18)
    toward, sideways = -x * sin(yaw) - z * cos(yaw), -x * cos(yaw) + z * sin(yaw)
    vehicle.strips(toward)
    if abs(sideways) > width / 2:
        vehicle.side(1.0 if sideways > 0 else -1.0)
    if abs(toward) > length / 2:
        vehicle.end(toward > 0)
