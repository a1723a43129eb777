"""Draw buildings along the street: walls, roofs, windows, doors, shops."""

from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from training.scenes.camera import Place, between, lift, plate
from training.scenes.canvas import Canvas, Label
from training.scenes.textures import FASCIAS, WALLS, Colour, choose, pick, scaled, wall_texture

SLATES: tuple[Colour, ...] = ((84, 76, 76), (110, 74, 60), (70, 72, 78), (96, 92, 84))


class _Front:
    """Draw the texture of a building's front; boxes are (left, low, right, high) in metres.

    `metres` is its width and height, `ppm` pixels per metre, `shop`: a shop on the ground floor.
    """

    def __init__(self, canvas: Canvas, metres: tuple[float, float], ppm: float) -> None:
        self.rng, self.metres, self.ppm, self.tint = canvas.rng, metres, ppm, canvas.tint
        self.lit, rng = canvas.lighting.appearance.lit, canvas.rng
        self.shop = rng.random() < 0.35
        width, self.floor = (max(4, int(side * ppm)) for side in metres)
        colour = scaled(choose(rng, WALLS), rng.uniform(0.65, 1.25))
        self.image = wall_texture(rng, (width, self.floor), ppm, colour, canvas.tint)
        self.pen = ImageDraw.Draw(self.image)
        self.storey, self.bay = rng.uniform(2.6, 3.5), rng.uniform(1.6, 3.6)
        self.trim = scaled(colour, rng.uniform(0.7, 1.4))
        self.frame: Colour = (225, 225, 220) if rng.random() < 0.65 else (50, 46, 44)
        self.pane = (self.bay * rng.uniform(0.35, 0.8), self.storey * rng.uniform(0.4, 0.62))
        self.panes = int(rng.integers(1, 4))

    def box(
        self, sides: tuple[float, float, float, float], fill: Colour, light: float | None = None
    ) -> None:
        """Fill a box; `light` replaces the light on the facade."""
        left, low, right, high = (side * self.ppm for side in sides)
        top, bottom = self.floor - high, self.floor - low
        if right - left >= 0.5 and bottom - top >= 0.5:
            shade = self.tint if light is None else light
            self.pen.rectangle((left, top, right, bottom), scaled(fill, shade))

    def window(self, x: float, y: float) -> None:
        """Draw a window with its sill, its lower left corner at (x, y)."""
        rng, (wide, tall) = self.rng, self.pane
        self.box((x - 0.12, y - 0.15, x + wide + 0.12, y), self.trim)
        self.box((x - 0.06, y, x + wide + 0.06, y + tall + 0.06), self.frame)
        glow = rng.random() < self.lit
        tone = int(rng.integers(15, 75) if rng.random() < 0.8 else rng.integers(90, 190))
        glass, light = (tone, tone + 4, tone + 9), None
        if glow:
            glass, light = (250, int(rng.integers(190, 225)), int(rng.integers(110, 170))), 0.85
        step = wide / self.panes
        for left in (x + k * step for k in range(self.panes)):
            self.box((left + 0.04, y + 0.05, left + step - 0.04, y + tall), glass, light)
        if self.ppm > 12 and self.panes > 1:
            self.box((x, y + tall * 0.5 - 0.03, x + wide, y + tall * 0.5 + 0.03), self.frame)

    def storeys(self) -> None:
        """Draw rows of windows, a few doors, and courses between the floors."""
        rng, storey, (wide, tall) = self.rng, self.storey, self.metres
        floors, columns = max(1, int(tall / storey)), max(1, int(wide / self.bay))
        if rng.random() < 0.5:
            for level in range(1, floors + 1):
                self.box((0, level * storey - 0.1, wide, level * storey + 0.08), self.trim)
        inset = (wide - columns * self.bay) / 2 + (self.bay - self.pane[0]) / 2
        for level in range(int(self.shop), floors):
            for x in (inset + column * self.bay for column in range(columns)):
                if level == 0 and rng.random() < 0.25:
                    self.box((x, 0, x + 1.0, 2.1), choose(rng, FASCIAS))
                else:
                    self.window(x, (level + 0.28) * storey)

    def drainpipe(self) -> None:
        """Draw a drainpipe on some fronts."""
        if self.rng.random() < 0.4:
            x = self.rng.uniform(0.05, 0.95) * self.metres[0]
            self.box((x, 0, x + 0.1, self.metres[1]), (60, 58, 58))

    def shops(self) -> None:
        """Draw shop windows, and a lettered fascia over them."""
        rng, wide, storey = self.rng, self.metres[0], self.storey
        fascia = choose(rng, FASCIAS)
        self.box((0, 0, wide, storey), scaled(fascia, 0.5))
        x = 0.2
        while x < wide - 0.5:
            span = rng.uniform(0.9, 2.8)
            self.display(x, span)
            x += span + 0.15
        shine = 0.8 if self.lit > 0.3 else None
        self.box((0, storey * 0.78, wide, storey * 0.98), fascia, shine)
        for _ in range(int(wide * 1.2)):
            x = rng.uniform(0.1, 0.9) * wide
            self.box((x, storey * 0.83, x + 0.22, storey * 0.93), (235, 230, 220), shine)

    def display(self, x: float, span: float) -> None:
        """Draw a shop window from x, `span` metres wide at most, with goods in it."""
        rng, end = self.rng, min(self.metres[0], x + span)
        glow, tone = rng.random() < self.lit, int(rng.integers(12, 80))
        glass = (240, 215, 160) if glow else (tone, tone, tone + 4)
        self.box((x, 0.35, end, self.storey * 0.74), glass, 0.8 if glow else None)
        for _ in range(4):
            left, low = x + rng.random() * span, rng.uniform(0.4, 1.5)
            r, g, b = rng.integers(20, 220, 3).tolist()
            self.box((left, low, min(left + 0.4, end), low + rng.uniform(0.2, 0.7)), (r, g, b))


def draw_facade(canvas: Canvas, ends: tuple[Place, Place], height: float, light: float) -> None:
    """Draw an upright front between a left and a right place, in `light` times the ambient."""
    corners = canvas.wall(ends, height)
    if corners is None:
        return
    (ax, az), (bx, bz) = ends
    length = float(np.hypot(bx - ax, bz - az))
    tallest = float(max(corners[3, 1] - corners[0, 1], corners[2, 1] - corners[1, 1]))
    ppm = max(1.5, min(min(tallest, 700) / height * 0.8, 30.0, 420 / length))
    canvas.begin(Label.BUILDING, (az + bz) / 2, light)
    front = _Front(canvas, (length, height), ppm)
    front.storeys()
    if front.shop:
        front.shops()
    front.drainpipe()
    canvas.textured(front.image, corners)


@dataclass(frozen=True)
class _House:
    """Draw a house from a near to a far place on one `side` (-1, 1) of the road.

    In metres: `height` of the walls, depth `deep`, and `rise` of the ridge above the walls.
    """

    canvas: Canvas
    near: Place
    far: Place
    side: int
    height: float
    deep: float
    rise: float

    def gable(self, colour: Colour) -> None:
        """Draw the end that faces the camera."""
        canvas, height, (x, z) = self.canvas, self.height, self.near
        back = (x + self.side * self.deep, z)
        corners = canvas.wall((self.near, back) if self.side > 0 else (back, self.near), height)
        if corners is None:
            return
        texture = wall_texture(canvas.rng, (48, 48), 48 / height, colour, canvas.tint)
        canvas.textured(texture, corners)
        ridge = (x + self.side * self.deep / 2, height + self.rise, z)
        canvas.solid([lift(self.near, height), ridge, lift(back, height)], scaled(colour, 0.9))

    def roof(self, slate: Colour, brick: Colour) -> None:
        """Draw the slope towards the road, and chimneys of `brick` on the ridge."""
        canvas, rng = self.canvas, self.canvas.rng
        eaves = [lift(place, self.height) for place in (self.near, self.far)]
        inward = self.side * self.deep / 2
        ridge = [(x + inward, y + self.rise, z) for x, y, z in eaves]
        canvas.solid([*eaves, *reversed(ridge)], slate)
        for k in np.linspace(0.12, 0.9, rng.integers(0, 7)).tolist():
            line = [between(p, q, k) for p, q in zip(eaves, ridge, strict=True)]
            canvas.stroke(line, 0.0, scaled(slate, 0.88))
        for k in rng.uniform(0, 1, rng.integers(0, 3)).tolist():
            x, y, z = between(ridge[0], ridge[1], k)
            if z > 4:
                canvas.solid(plate(x, 0.5, y - 1, y + 1.2, z), brick)


def draw_building(canvas: Canvas, ends: tuple[Place, Place], side: int, height: float) -> None:
    """Draw a house between a near and a far place on one side (-1, 1) of the road."""
    rng, lighting, (near, far) = canvas.rng, canvas.lighting, ends
    deep, rise = rng.uniform(6, 12), choose(rng, (0.0, rng.uniform(1.5, 4.5)))
    house = _House(canvas, near, far, side, height, deep, rise)
    front = lighting.shade if side == lighting.sun else 1.0
    canvas.begin(Label.BUILDING, near[1], canvas.sample_light())
    brick = pick(rng, WALLS)
    if near[1] > 3:
        house.gable(brick)
    slate = pick(rng, SLATES)
    if rise:
        canvas.begin(Label.BUILDING, near[1], front)
        house.roof(slate, brick)
    draw_facade(canvas, (near, far) if side < 0 else (far, near), height, front)
