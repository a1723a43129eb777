"""Place buildings, vehicles, people and furniture along a street."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import pi
from typing import Concatenate, ParamSpec

from training.scenes.buildings import draw_building, draw_facade
from training.scenes.canvas import Canvas
from training.scenes.furniture import POLE_HEIGHTS, POLES, draw_fence, draw_pole
from training.scenes.ground import Street
from training.scenes.people import draw_cyclist, draw_pedestrian
from training.scenes.textures import choose
from training.scenes.vegetation import draw_tree
from training.scenes.vehicles import DRIVEN, PARKED, Body, draw_vehicle

Args = ParamSpec("Args")


class Layout:
    """Place and draw objects along a street, up to the distance `end` (m)."""

    def __init__(self, canvas: Canvas, street: Street) -> None:
        self.canvas, self.street, self.rng = canvas, street, canvas.rng
        self.end = street.junction if street.crossed else self.rng.uniform(60, 120)
        self.tasks: list[tuple[float, Callable[[], None]]] = []

    def furnish(self, built: Sequence[float]) -> None:
        """Place all objects; `built` (0..1) is the density of buildings on the left and right."""
        for side, density in zip((-1, 1), built, strict=True):
            self.add_frontage(side, density)
        self.add_backdrop()
        self.add_traffic()
        self.add_crossers()
        for side in (-1, 1):
            self.add_parked(side)
            self.add_poles(side)
            self.add_walkers(side)
            self.add_railing(side)

    def paint(self) -> None:
        """Draw all objects from far to near."""
        for _, task in sorted(self.tasks, key=lambda item: -item[0]):
            task()

    def add(
        self,
        depth: float,
        draw: Callable[Concatenate[Canvas, Args], None],
        *args: Args.args,
        **kwargs: Args.kwargs,
    ) -> None:
        """Schedule an object to be drawn, `depth` metres away."""
        self.tasks.append((depth, partial(draw, self.canvas, *args, **kwargs)))

    def distance(self, low: float, high: float) -> float:
        """Sample a distance from low to high, denser near the camera and not beyond the end."""
        return float(low * (min(high, self.end) / low) ** self.rng.random())

    def distances(self, least: int, most: int, low: float, high: float) -> Iterator[float]:
        """Sample `least` up to, not including, `most` distances."""
        return (self.distance(low, high) for _ in range(self.rng.integers(least, most)))

    def add_frontage(self, side: int, built: float) -> None:
        """Add buildings, gardens and boundaries along one side."""
        rng, place = self.rng, self.street.place
        setback = choose(rng, (0.0, 0.0, rng.uniform(2, 7)))
        usual, bare = rng.uniform(5, 13), choose(rng, (0.1, 0.5, 0.9))
        edge = self.street.half + self.street.pavement(side)
        z = 2.2
        while z < self.end:
            far = min(z + rng.uniform(5, 16), self.end)
            if rng.random() < built:
                height = max(3.0, usual * rng.uniform(0.75, 1.35))
                across = side * (edge + setback)
                ends = (place(across, z), place(across, far))
                self.add(far + 0.2, draw_building, ends, side, height)
            else:
                self.add_garden(side, (z, far), bare)
            if (setback > 1 or rng.random() > built) and rng.random() < 0.6:
                ends = (place(side * (edge + 0.2), z), place(side * (edge + 0.2), far))
                self.add(far, draw_fence, ends, choose(rng, ("railing", "panel", "wall")))
            z = far + (rng.uniform(0.5, 6) if rng.random() < 0.35 else 0.0)

    def add_garden(self, side: int, span: tuple[float, float], bare: float) -> None:
        """Add trees and hedges behind a pavement; a fraction `bare` has no leaves."""
        rng, edge = self.rng, self.street.half + self.street.pavement(side)
        for _ in range(rng.integers(1, 4)):
            z = rng.uniform(*span) + 4
            leafless = rng.random() < bare
            shape = "bare" if leafless else choose(rng, ("round", "round", "cone", "hedge"))
            tall = rng.uniform(1.2, 3) if shape == "hedge" else rng.uniform(5, 13)
            at = self.street.place(side * (edge + rng.uniform(1.5, 9)), z)
            self.add(z + 0.1, draw_tree, at, tall, shape)

    def add_backdrop(self) -> None:
        """Add frontages and trees that close the view."""
        rng, street, canvas = self.rng, self.street, self.canvas
        end = self.end + 2 * street.cross if street.crossed else self.end
        depth = end + 3.0
        span = depth * canvas.image.width / canvas.camera.focal * 0.7 + 10
        x, middle = -span, street.centre(end) if end > 60 else 0.0
        built = choose(rng, (0.4, 0.7, 0.95))
        while x < span:
            wide = rng.uniform(6, 22)
            if rng.random() < built:
                ends = (middle + x, depth), (middle + x + wide, depth)
                self.add(depth + 2, draw_facade, ends, rng.uniform(4, 14), canvas.sample_light())
            for _ in range(rng.integers(1, 4)):
                at = middle + x + rng.uniform(0, wide)
                shape = choose(rng, ("bare", "round", "cone", "hedge"))
                tall = rng.uniform(1.5, 4) if shape == "hedge" else rng.uniform(4, 12)
                back = depth + rng.uniform(-1, 6)
                self.add(back, draw_tree, (at, back), tall, shape)
            x += wide

    def add_vehicle(self, across: float, z: float, yaw: float, bodies: Sequence[Body]) -> None:
        """Add a vehicle right of the centre line, turned from the road's direction by `yaw`."""
        body, at = choose(self.rng, bodies), self.street.place(across, z)
        self.add(z, draw_vehicle, at, yaw + self.street.heading(z), body)

    def add_traffic(self) -> None:
        """Add moving vehicles along and across the street."""
        rng, street = self.rng, self.street
        for _ in range(rng.integers(1, 5)):
            side = choose(rng, (-1, 1))
            across = side * street.half * rng.uniform(0.25, 0.5)
            z = self.distance(10, 90)
            self.add_vehicle(across, z, 0.0 if side < 0 else pi, DRIVEN)
        for _ in range(rng.integers(1, 5) if street.crossed else 0):
            across = rng.uniform(-15, 15)
            z = street.junction + street.cross * rng.uniform(0.3, 1.7)
            yaw = choose(rng, (-1, 1)) * rng.uniform(1.1, 1.9)
            self.add_vehicle(across, z, yaw, DRIVEN)

    def add_crossers(self) -> None:
        """Add cyclists and people on the road."""
        for draw, most in ((draw_cyclist, 4), (draw_pedestrian, 2)):
            for z in self.distances(0, most, 6, 40):
                across = self.rng.uniform(-0.9, 0.9) * self.street.half
                self.add(z, draw, self.street.place(across, z))

    def add_parked(self, side: int) -> None:
        """Add a row of parked cars with gaps."""
        rng, across = self.rng, side * (self.street.half - 1.1)
        parked, z = choose(rng, (0.0, 0.3, 0.75)), self.distance(8, 25)
        while z < self.end:
            if rng.random() < parked:
                yaw = 0.0 if (side < 0) == (rng.random() < 0.75) else pi
                self.add_vehicle(across, z, yaw + rng.normal(0, 0.03), PARKED)
            z += rng.uniform(5.5, 7.5)

    def add_poles(self, side: int) -> None:
        """Add poles along a kerb."""
        rng, street = self.rng, self.street
        for z in self.distances(3, 7, 5, 70):
            kind = choose(rng, POLES)
            tall = POLE_HEIGHTS[kind] * rng.uniform(0.85, 1.25)
            at = street.place(side * (street.half + rng.uniform(0.3, 0.9)), z)
            self.add(z, draw_pole, at, tall, kind)

    def add_walkers(self, side: int) -> None:
        """Add people on a pavement."""
        street = self.street
        for z in self.distances(0, 5, 6, 45):
            aside = self.rng.uniform(0.3, 0.9) * street.pavement(side)
            self.add(z, draw_pedestrian, street.place(side * (street.half + aside), z))

    def add_railing(self, side: int) -> None:
        """Add a railing on some kerbs."""
        rng, street = self.rng, self.street
        if rng.random() < 0.3:
            z = self.distance(6, 30)
            far, across = z + rng.uniform(4, 16), side * (street.half + 0.3)
            ends = (street.place(across, z), street.place(across, far))
            self.add(far, draw_fence, ends, "railing")
