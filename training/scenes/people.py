"""Draw pedestrians and bicyclists."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.scenes.camera import Place, Point
from training.scenes.canvas import Canvas, Label
from training.scenes.textures import FASCIAS, PAINTS, Colour, choose, pick, scaled

CLOTHES: tuple[Colour, ...] = (
    (26, 26, 30), (40, 44, 60), (60, 50, 44), (30, 36, 56), (90, 92, 96), (130, 30, 34),
    (170, 160, 140), (200, 200, 196), (50, 70, 56), (70, 90, 130),
)  # fmt: skip
SKINS: tuple[Colour, ...] = ((196, 150, 124), (150, 108, 84), (92, 64, 50), (210, 170, 146))
HAIRS: tuple[Colour, ...] = ((30, 24, 20), (70, 50, 34), (200, 200, 196), (24, 24, 26))
VEST: Colour = (190, 210, 50)
Outline = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """Draw a flat figure at a place; its points are (across, up) in metres before stretching."""

    canvas: Canvas
    at: Place
    stretch: tuple[float, float]
    coat: Colour
    legs: Colour

    @classmethod
    def sample(cls, canvas: Canvas, label: Label, at: Place) -> "Figure":
        """Sample build and clothes, and begin an object on the canvas."""
        rng = canvas.rng
        canvas.begin(label, at[1], canvas.sample_light())
        across = rng.uniform(0.85, 1.25) * choose(rng, (-1.0, 1.0))
        stretch = (across, rng.uniform(0.85, 1.1))
        return cls(canvas, at, stretch, pick(rng, CLOTHES), pick(rng, CLOTHES[:5]))

    def place(self, points: Outline) -> list[Point]:
        """Map figure points to world points."""
        (x, z), (across, up) = self.at, self.stretch
        return [(x + px * across, py * up, z) for px, py in points]

    def flat(self, points: Outline, colour: Colour) -> None:
        """Fill a polygon."""
        self.canvas.solid(self.place(points), colour)

    def limb(self, points: Outline, thick: float, colour: Colour) -> None:
        """Draw a bent limb or tube, `thick` metres across."""
        self.canvas.stroke(self.place(points), thick, colour)

    def head(self, lean: float) -> None:
        """Draw head and hair, `lean` metres in front of the feet."""
        skin, hair = pick(self.canvas.rng, SKINS), pick(self.canvas.rng, HAIRS)
        face, crown = self.place([(lean, 1.6), (lean, 1.68)])
        self.canvas.blob(face, (0.1, 0.14), skin)
        self.canvas.blob(crown, (0.105, 0.09), hair)

    def wheel(self, across: float, side_on: bool) -> None:
        """Draw a bicycle wheel; the label covers the whole disc."""
        canvas, scale = self.canvas, self.canvas.camera.scale(self.at[1])
        x, y = canvas.camera.project(self.place([(across, 0.34)]))[0].tolist()
        ry, rim = 0.34 * scale, max(2, round(0.05 * scale))
        rx = ry if side_on else max(1.5, 0.05 * scale)
        box = (x - rx, y - ry, x + rx, y + ry)
        canvas.marker.ellipse(box, canvas.thing)
        ink = scaled((24, 24, 26), canvas.tint)
        canvas.pen.ellipse(box, None if side_on else ink, ink, rim)


def draw_cyclist(canvas: Canvas, at: Place) -> None:
    """Draw a rider on a bicycle, from behind or from the side."""
    rng, figure = canvas.rng, Figure.sample(canvas, Label.BICYCLIST, at)
    coat = VEST if rng.random() < 0.25 else figure.coat
    frame = pick(rng, PAINTS)
    if rng.random() < 0.45:
        ride_sideways(figure, coat, frame)
    else:
        ride_ahead(figure, coat)


def ride_sideways(figure: Figure, coat: Colour, frame: Colour) -> None:
    """Draw a cyclist and a bicycle's frame from the side."""
    for across in (-0.52, 0.52):
        figure.wheel(across, side_on=True)
    figure.limb(((-0.52, 0.34), (-0.12, 0.36), (0.42, 0.82), (0.52, 0.34)), 0.05, frame)
    figure.limb(((-0.52, 0.34), (-0.22, 0.86), (0.4, 0.8), (-0.1, 0.36)), 0.05, frame)
    figure.limb(((-0.2, 0.95), (0.12, 0.68), (-0.05, 0.34)), 0.14, figure.legs)
    figure.limb(((-0.2, 0.95), (0.05, 0.8), (0.08, 0.4)), 0.14, scaled(figure.legs, 0.8))
    figure.flat(((-0.3, 0.92), (-0.08, 0.9), (0.28, 1.36), (0.16, 1.5), (-0.1, 1.42)), coat)
    figure.limb(((0.2, 1.4), (0.25, 1.1), (0.44, 1.0)), 0.1, scaled(coat, 0.85))
    figure.head(0.3)


def ride_ahead(figure: Figure, coat: Colour) -> None:
    """Draw a cyclist from behind."""
    figure.wheel(0.0, side_on=False)
    figure.limb(((-0.3, 1.0), (0.3, 1.0)), 0.05, (40, 40, 42))
    figure.limb(((-0.1, 0.95), (-0.15, 0.6), (-0.1, 0.25)), 0.15, figure.legs)
    figure.limb(((0.1, 0.95), (0.15, 0.7), (0.1, 0.42)), 0.15, scaled(figure.legs, 0.85))
    torso = ((-0.17, 0.9), (0.17, 0.9), (0.23, 1.4), (0.1, 1.5), (-0.1, 1.5), (-0.23, 1.4))
    figure.flat(torso, coat)
    for s in (-1, 1):
        figure.limb(((s * 0.2, 1.4), (s * 0.3, 1.15), (s * 0.26, 1.0)), 0.1, scaled(coat, 0.85))
    figure.head(0.0)


def draw_pedestrian(canvas: Canvas, at: Place) -> None:
    """Draw a person who stands or walks."""
    rng, figure = canvas.rng, Figure.sample(canvas, Label.PEDESTRIAN, at)
    coat, legs = figure.coat, figure.legs
    side_on = rng.random() < 0.45
    stride = rng.uniform(0.02, 0.32) if side_on else rng.uniform(0.05, 0.12)
    for step, colour in ((-stride, scaled(legs, 0.8)), (stride, legs)):
        leg = ((0.0, 0.86), (step * 0.65, 0.45), (step, 0.05), (step + 0.08, 0.03))
        figure.limb(leg, 0.15, colour)
    hip, hem = 0.14 if side_on else 0.18, choose(rng, (0.8, 0.8, 0.55))
    half = ((hip, hem), (hip * 1.2, 1.36), (hip * 0.6, 1.47))
    figure.flat((*half, *((-px, py) for px, py in reversed(half))), coat)
    for s in (-1, 1):
        hand = s * (hip * 1.1 + stride * 0.4)
        arm = ((s * hip, 1.38), (s * hip * 1.25, 1.1), (hand, 0.82))
        figure.limb(arm, 0.1, scaled(coat, 0.82))
    if rng.random() < 0.4:  # bag
        x = rng.uniform(-0.4, 0.4)
        bag = ((x - 0.12, 0.55), (x + 0.12, 0.55), (x + 0.1, 0.85), (x - 0.1, 0.85))
        figure.flat(bag, pick(rng, FASCIAS))
    figure.head(0.0)
