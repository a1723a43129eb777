"""Render labelled street scenes, seen from a car's windscreen."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from training.scenes.camera import FAR, Camera
from training.scenes.canvas import Canvas, Label
from training.scenes.conditions import CONDITIONS, Lighting, sample_condition, sky_image
from training.scenes.ground import GRASS, PAVING, Street, draw_ground
from training.scenes.layout import Layout
from training.scenes.photography import apply_condition, photograph
from training.scenes.textures import PAINTS, Bytes, Floats, choose, pick, scaled, value_noise

__all__ = ["CONDITIONS", "Scene", "render_scene"]


# Relative amplitude of the light on objects of each class; the ground has its own texture.
GRAIN = (0.0, 0.09, 0.05, 0.05, 0.06, 0.18, 0.05, 0.12, 0.05, 0.16, 0.16, 0.05)


@dataclass(frozen=True)
class Scene:
    """A rendered frame: `image` uint8 [H, W, 3] RGB and `label` uint8 [H, W], values 0..11."""

    image: Bytes
    label: Bytes


def render_scene(
    seed: int, height: int = 360, width: int = 480, condition: str | None = None
) -> Scene:
    """Render one scene, the same for the same arguments; a `condition` of None draws one.

    Returns image uint8 [height, width, 3] RGB and label uint8 [height, width] with values 0..11.
    """
    rng = np.random.default_rng(seed)
    drawn, size = sample_condition(rng), (2 * width, 2 * height)
    condition = condition or drawn
    camera, street = Camera.sample(rng, size), Street.sample(rng)
    canvas = Canvas(camera, Lighting.sample(rng, condition), rng, size)
    canvas.image.paste(sky_image(rng, size, condition))
    built = choose(rng, (0.1, 0.65, 0.95)), choose(rng, (0.1, 0.65, 0.95))
    left, right = (PAVING if fraction > 0.5 else GRASS for fraction in built)
    floor, ground = draw_ground(canvas, street, (left, right))
    layout = Layout(canvas, street)
    layout.furnish(built)
    layout.paint()
    image, label, depth = compose(canvas, floor, ground)
    image = apply_condition(canvas, image, label, depth)
    if rng.random() < 0.15:
        image, label = with_bonnet(rng, image, label)
    return Scene(photograph(rng, image, condition), label)


def compose(canvas: Canvas, floor: Floats, ground: Floats) -> tuple[Floats, Bytes, Floats]:
    """Return image float32 [H, W, 3], label uint8 [H, W] and depth float32 [H, W] of a canvas.

    Depth is in metres. `floor` and `ground` [H, W] are light on the ground and its distance (m).
    """
    rng, (height, width) = canvas.rng, floor.shape
    objects = np.asarray(canvas.objects, np.int32)[1::2, 1::2]
    label = np.array(canvas.labels, np.uint8)[objects]
    depths = np.array(canvas.depths, np.float32)[objects]
    depth = np.where(objects < 4, np.minimum(ground, np.float32(FAR)), depths)
    grain = np.array(GRAIN, np.float32)[label] * value_noise(rng, height, width, 7, 3)
    light = np.where((objects > 0) & (objects < 4), floor, 1 + grain)
    return np.asarray(canvas.image.reduce(2), np.float32) * light[..., None], label, depth


def with_bonnet(rng: Generator, image: Floats, label: Bytes) -> tuple[Floats, Bytes]:
    """Add the camera car's own bonnet at the bottom; its label is void."""
    height, width = label.shape
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    edge = height * rng.uniform(0.93, 0.98)
    bonnet = y > edge + ((x / width - 0.5) * rng.uniform(1, 3)) ** 2 * height * 0.05
    paint = np.asarray(scaled(pick(rng, PAINTS), 0.3), np.float32)
    return np.where(bonnet[..., None], paint, image), np.where(bonnet, np.uint8(Label.VOID), label)
