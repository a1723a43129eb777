"""Draw the ground of a street: road with markings, kerbs, pavements and verges."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from training.scenes.camera import FAR, Place
from training.scenes.canvas import Canvas
from training.scenes.conditions import Lighting
from training.scenes.textures import Bytes, Colour, Floats, choose, to_bytes, value_noise

VIEW = 90.0


@dataclass(frozen=True)
class Street:
    """Geometry of a road (m): half width, pavements (left, right) and course.

    `bend` is the centre line's (x0, slope, curvature); a road half as wide as `cross` crosses
    at `junction`.
    """

    half: float
    kerbs: tuple[float, float]
    bend: tuple[float, float, float]
    junction: float
    cross: float

    @classmethod
    def sample(cls, rng: Generator) -> "Street":
        """Sample a street; about a third have a crossing road in view."""
        half = choose(rng, (rng.uniform(3.0, 4.2), rng.uniform(4.2, 7.0)))
        return cls(
            half=half,
            kerbs=(rng.uniform(1.2, 4.5), rng.uniform(1.2, 4.5)),
            bend=(half * rng.uniform(0.1, 0.6), rng.normal(0, 0.06), rng.normal(0, 0.0012)),
            junction=rng.uniform(14, 35) if rng.random() < 0.3 else 200.0,
            cross=rng.uniform(3, 6),
        )

    @property
    def crossed(self) -> bool:
        """Return whether a crossing road is in view."""
        return self.junction < VIEW

    def centre(self, z: float) -> float:
        """Return the lateral position (x) of the centre line at distance z."""
        return self.bend[0] + self.bend[1] * z + self.bend[2] * z * z

    def heading(self, z: float) -> float:
        """Return the direction of the road at distance z, in radians to the right."""
        return self.bend[1] + 2 * self.bend[2] * z

    def place(self, across: float, z: float) -> Place:
        """Return the place `across` metres right of the centre line at distance z."""
        return (self.centre(z) + across, z)

    def pavement(self, side: int) -> float:
        """Return the width of the pavement on one side (-1 left, 1 right)."""
        return self.kerbs[(side + 1) // 2]


@dataclass(frozen=True)
class Ground:
    """Ground under pixels [h, w]: metres `across` the road from its centre, x and z (float32)."""

    street: Street
    across: Floats
    x: Floats
    z: Floats

    @classmethod
    def of(cls, street: Street, x: Floats, z: Floats) -> "Ground":
        """Build the ground of a street at x and z [h, w]."""
        a, b, c = street.bend
        return cls(street, np.asarray(x - (a + z * (b + c * z)), np.float32), x, z)

    @property
    def beyond(self) -> Floats:
        """Return metres beyond the edge of the road, negative on it, float32 [h, w]."""
        return np.abs(self.across) - np.float32(self.street.half)

    def look_up(self, grid: Floats, scale: tuple[float, float]) -> Floats:
        """Repeat a [256, 256] grid over the ground, `scale` texels per metre across and along."""
        rows = (self.z * scale[1]).astype(np.int32) & 255
        columns = (self.across * scale[0]).astype(np.int32) & 255
        return np.asarray(grid[rows, columns], np.float32)

    def noise(self, rng: Generator, scale: tuple[float, float], cell: float) -> Floats:
        """Sample noise on the ground, float32 [h, w], about -1..1, with blobs of `cell` texels."""
        return self.look_up(value_noise(rng, 256, 256, cell, 3), scale)


ASPHALT, PAVING, GRASS, WHITE, YELLOW, KERB = range(1, 7)
COLOURS: tuple[Colour, ...] = (
    (0, 0, 0), (100, 102, 105), (110, 108, 105), (90, 104, 60), (190, 190, 186), (172, 152, 66),
    (132, 130, 127),
)  # fmt: skip


def materials(ground: Ground, verges: tuple[int, int]) -> Bytes:
    """Return the material of the unpainted ground, uint8 [h, w].

    `verges` are the materials behind the left and the right pavement.
    """
    street, beyond, right = ground.street, ground.beyond, ground.across > 0
    walk = np.where(right, np.float32(street.kerbs[1]), np.float32(street.kerbs[0]))
    verge = np.where(right, np.uint8(verges[1]), np.uint8(verges[0]))
    kind = np.where(beyond < walk, np.uint8(PAVING), verge)
    kind[(beyond >= 0) & (beyond < 0.16)] = KERB
    kind[beyond < 0] = ASPHALT
    if street.crossed:
        kind[ground.z > street.junction] = ASPHALT
        kind[ground.z > street.junction + 2 * street.cross] = PAVING
    return kind


def paint_markings(rng: Generator, ground: Ground, paint: Bytes) -> None:
    """Add white and yellow road markings to the material map `paint` [h, w] in place."""
    street, u, z, beyond = ground.street, ground.across, ground.z, ground.beyond
    distance = np.abs(u)
    road = (beyond < 0) & (z < min(street.junction, VIEW))
    dash, gap = rng.uniform(1.5, 4), rng.uniform(1.5, 6)
    style = rng.random()
    if style < 0.8:
        paint[road & (distance < 0.07) & ((z % (dash + gap)) < dash)] = WHITE
    if style < 0.3:  # two lanes each way
        paint[road & (np.abs(distance - street.half / 2) < 0.06) & ((z % 6) < 2)] = WHITE
    if rng.random() < 0.5:  # yellow lines along the kerb
        paint[road & (np.abs(np.abs(beyond + 0.4) - 0.1) < 0.05)] = YELLOW
    if rng.random() < 0.4:  # zebra crossing or stop line
        at, deep, stripe = rng.uniform(5, 25), choose(rng, (0.2, 1.5)), choose(rng, (0.6, 1.2))
        paint[road & (np.abs(z - at) < deep) & (u % 1.2 < stripe)] = WHITE
    if rng.random() < 0.25:  # hatching or a box junction
        at = rng.uniform(8, 25)
        lattice = ((u + z) % 2 < 0.14) | ((u - z) % 2 < 0.14)
        paint[road & (np.abs(z - at) < 5) & lattice] = YELLOW


def surface(rng: Generator, ground: Ground, kind: Bytes) -> Floats:
    """Compute wear, repairs, slabs and turf as factors of the ground's colour, float32 [h, w]."""
    u, z, half = ground.across, ground.z, ground.street.half
    speckle = ground.look_up(rng.random((256, 256), dtype=np.float32) - 0.5, (37, 31))
    tone = 1 + 0.14 * ground.noise(rng, (9, 3), 24) + 0.22 * np.minimum(1, 14 / z) * speckle
    tracks = value_noise(rng, 1, 512, 24, 3)[0] * rng.uniform(0.0, 0.14)
    tone += tracks[np.clip(u * 16 + 256, 0, 511).astype(np.int32)]
    for _ in range(rng.integers(0, 6)):  # repairs and manholes
        at, far, wide, long = rng.uniform((-half, 3, 0.3, 0.3), (half, 25, 1.2, 4.0)).tolist()
        patch = (np.abs(u - at) < wide) & (np.abs(z - far) < long) & (kind == ASPHALT)
        tone[patch] *= rng.uniform(0.7, 1.15)
    if rng.random() < 0.6:  # paving slabs
        seams = ((z % 0.9) < 0.06) | ((np.abs(u) % 0.6) < 0.04)
        tone[(kind == PAVING) & (z < 25) & seams] *= 0.82
    return np.where(kind == GRASS, tone * (1 + 0.35 * ground.noise(rng, (20, 9), 4)), tone)


def shadows(rng: Generator, ground: Ground, sun: int) -> NDArray[np.bool_]:
    """Return a mask of the ground that buildings and trees shade, bool [h, w]."""
    ragged = np.repeat(rng.uniform(-2.5, 2.5, 64), 8).astype(np.float32)
    extent = rng.uniform(-1.1, 1.0) * ground.street.half
    shaded = ground.across * sun > -extent - ragged[np.minimum(ground.z * 2, 511).astype(np.int32)]
    if rng.random() < 0.5:
        shaded |= ground.noise(rng, (5, 2.5), 30) > rng.uniform(0.1, 0.7)
    return shaded


def lamplight(ground: Ground, condition: str) -> tuple[Floats, Floats]:
    """Compute the light of headlights and of street lamps in the dark, float32 [h, w] each."""
    z, night = ground.z, condition == "night"
    beam = (2.0 if night else 0.2) * np.exp(-(((z - 9) / 9) ** 2) - (ground.x / 4) ** 2)
    pool = np.exp(-((((z + 4) % 24 - 12) / 6) ** 2) - (ground.beyond / 4) ** 2)
    return np.asarray(beam, np.float32), np.asarray((1.5 if night else 0.0) * pool, np.float32)


def illumination(rng: Generator, lighting: Lighting, ground: Ground, kind: Bytes) -> Floats:
    """Compute texture, shadows and lamplight as factors of the ground's colour, float32 [h, w]."""
    tone = surface(rng, ground, kind)
    if lighting.sun and rng.random() < 0.8:
        tone = np.where(shadows(rng, ground, lighting.sun), tone * lighting.shade, tone)
    if lighting.dark:
        beam, pool = lamplight(ground, lighting.condition)
        tone = tone * (1 + beam) + pool
    return tone


def draw_ground(canvas: Canvas, street: Street, verges: tuple[int, int]) -> tuple[Floats, Floats]:
    """Paint the ground in flat colours; `verges` are the materials behind the pavements.

    Returns float32 [H, W] at output size: the light to multiply in later, and z (m).
    """
    rng, (width, height) = canvas.rng, canvas.image.size
    xs, zs = canvas.camera.ground(height, width)
    tilt = abs(canvas.camera.roll) * width
    top = max(0, int(canvas.camera.horizon - tilt) - 2) // 2 * 2
    ground = Ground.of(street, xs[top:], np.minimum(zs[top:], np.float32(1e3)))
    paint = materials(ground, verges)
    kind = np.where(paint == KERB, np.uint8(PAVING), paint)
    paint_markings(rng, ground, paint)

    palette = np.array(COLOURS, np.float32)
    palette[ASPHALT:WHITE] *= rng.uniform(0.85, 1.15, 3)[:, None]
    palette[ASPHALT] += rng.normal(0, 4, 3)
    colours = to_bytes(palette * np.asarray(canvas.lighting.ambient, np.float32))
    below = zs[top:] < FAR
    canvas.image.paste(Image.fromarray(colours[paint]), (0, top), Image.fromarray(below))
    canvas.objects.paste(Image.fromarray((kind * below).astype(np.int32)), (0, top))

    small = Ground.of(street, ground.x[1::2, 1::2], ground.z[1::2, 1::2])
    light = np.ones((height // 2, width // 2), np.float32)
    light[top // 2 :] = illumination(rng, canvas.lighting, small, kind[1::2, 1::2])
    return light, zs[1::2, 1::2]
