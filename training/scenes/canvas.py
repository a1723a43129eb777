"""Paint an image together with the map of its objects."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from training.scenes.camera import FAR, Camera, Pixels, Place, Point, homography, lift
from training.scenes.conditions import Lighting
from training.scenes.textures import Colour, scaled

Lamp = tuple[float, float, float, Colour]  # x, y and radius in output pixels
Label = IntEnum(
    "Label",
    "SKY BUILDING POLE ROAD PAVEMENT TREE SIGN FENCE CAR PEDESTRIAN BICYCLIST VOID",
    start=0,
)


class Canvas:
    """Image (RGB) and object map of a `size` (w, h) twice the output's, painted far to near.

    Object k has class `labels[k]` at `depths[k]` metres; 0..3 are sky, road, paving and grass.
    """

    def __init__(
        self, camera: Camera, lighting: Lighting, rng: Generator, size: tuple[int, int]
    ) -> None:
        self.camera, self.lighting, self.rng = camera, lighting, rng
        self.image, self.objects = Image.new("RGB", size), Image.new("I", size)
        self.pen, self.marker = ImageDraw.Draw(self.image), ImageDraw.Draw(self.objects)
        self.labels = [Label.SKY, Label.ROAD, Label.PAVEMENT, Label.TREE]
        self.depths = [FAR] * 4
        self.lamps: list[Lamp] = []
        self.thing, self.tint = 3, lighting.ambient

    def sample_light(self) -> float:
        """Sample a fraction of the ambient light, from shade to full."""
        return self.rng.uniform(self.lighting.shade, 1.0)

    def begin(self, label: Label, depth: float, light: float | None = None) -> None:
        """Start an object `depth` metres away, in `light` times the ambient or the last's light."""
        self.thing = len(self.labels)
        self.labels.append(label)
        self.depths.append(depth)
        if light is not None:
            r, g, b = self.lighting.ambient
            self.tint = (r * light, g * light, b * light * (1.0 + 0.08 * max(0.0, 1.0 - light)))

    def claim(self, outline: Pixels) -> None:
        """Assign the pixels of a polygon [N, 2] to the object without painting them."""
        self.marker.polygon(outline.ravel().tolist(), self.thing)

    def polygon(self, outline: Pixels, colour: Colour, glow: bool = False) -> None:
        """Fill a polygon [N, 2]; `glow` ignores the ambient light."""
        self.pen.polygon(outline.ravel().tolist(), colour if glow else scaled(colour, self.tint))
        self.claim(outline)

    def solid(self, outline: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon in the world."""
        self.polygon(self.camera.project(outline), colour)

    def stroke(self, points: Sequence[Point], metres: float, colour: Colour) -> None:
        """Draw a polyline `metres` thick at its first point, at least one output pixel."""
        flat = self.camera.project(points).ravel().tolist()
        wide = max(2, round(metres * self.camera.scale(points[0][2])))
        self.pen.line(flat, scaled(colour, self.tint), wide)
        self.marker.line(flat, self.thing, wide)

    def blob(
        self, centre: Point, radii: tuple[float, float], colour: Colour, glow: bool = False
    ) -> None:
        """Fill an ellipse facing the camera, its radii (across, up) in metres."""
        (x, y), scale = self.camera.project([centre])[0].tolist(), self.camera.scale(centre[2])
        rx, ry = radii[0] * scale, radii[1] * scale
        box = (x - rx, y - ry, x + rx, y + ry)
        self.pen.ellipse(box, colour if glow else scaled(colour, self.tint))
        self.marker.ellipse(box, self.thing)

    def shine(self, at: Sequence[float] | Pixels, radius: float, colour: Colour) -> None:
        """Add a lamp at a canvas pixel [2], its radius in output pixels."""
        self.lamps.append((at[0] / 2, at[1] / 2, radius, colour))

    def wall(self, ends: tuple[Place, Place], height: float) -> Pixels | None:
        """Return a wall's canvas corners [4, 2], `ends` from left to right; None if not in view."""
        a, b = ends
        corners = self.camera.project([lift(a, height), lift(b, height), lift(b, 0), lift(a, 0)])
        left, right = corners[:, 0].min(), corners[:, 0].max()
        visible = corners[1, 0] - corners[0, 0] > 0.7 and right > 0 and left < self.image.width
        return corners if visible else None

    def textured(self, texture: Image.Image, corners: Pixels) -> None:
        """Paint a texture onto a quadrilateral [4, 2], clockwise from its top left corner."""
        x0, y0 = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int).tolist()
        x1, y1 = np.minimum(np.ceil(corners.max(axis=0)) + 1, self.image.size).astype(int).tolist()
        size = (x1 - x0, y1 - y0)
        local = corners - (x0, y0)
        terms = homography(local, texture.size)
        if min(size) < 1 or terms is None:
            return
        warped = texture.transform(
            size, Image.Transform.PERSPECTIVE, terms, Image.Resampling.NEAREST
        )
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(local.ravel().tolist(), 255)
        self.image.paste(warped, (x0, y0), mask)
        self.claim(corners)
