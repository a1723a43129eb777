"""Simulate the condition (rain, fog, dark) of a scene and the camera that records it."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from training.scenes.canvas import Canvas, Label, Lamp
from training.scenes.textures import Bytes, Floats, to_bytes, value_noise


def apply_condition(canvas: Canvas, image: Floats, label: Bytes, depth: Floats) -> Floats:
    """Add haze, wet ground, rain and lamp light to an image float32 [H, W, 3] (0..255).

    `label` is uint8 [H, W], `depth` float32 [H, W] in metres.
    """
    rng, condition = canvas.rng, canvas.lighting.condition
    if condition == "rain":
        image = wetted(rng, image, label, canvas.camera.horizon / 2)
    visible = {
        "day": 900.0,
        "dusk": 350.0,
        "fog": rng.uniform(25, 90),
        "rain": rng.uniform(120, 300),
        "night": 500.0,
    }[condition]
    haze = canvas.lighting.appearance.haze * np.array((0.98, 1.0, 1.02), np.float32)
    clear = np.exp(-np.where(label == Label.SKY, np.float32(200), depth) / visible)[..., None]
    image = haze + (image - haze) * clear
    add_glow(image, canvas.lamps, 1.0 if condition == "night" else 0.7)
    return image + streaks(rng, label.shape) if condition == "rain" else image


def wetted(rng: Generator, image: Floats, label: Bytes, horizon: float) -> Floats:
    """Mirror the image above `horizon` (a row) in road and pavement, float32 [H, W, 3]."""
    height, width = label.shape
    middle = int(np.clip(horizon, 4, height - 4))
    rows = np.clip(2 * middle - np.arange(height) + rng.integers(-3, 4, height), 0, height - 1)
    ground = np.isin(label, (Label.ROAD, Label.PAVEMENT))[..., None]
    wet = rng.uniform(0.15, 0.45) * (1 + 0.6 * value_noise(rng, height, width, 40, 2))
    return np.where(ground, image + (image[rows] - image) * np.clip(wet, 0, 0.8)[..., None], image)


def streaks(rng: Generator, shape: tuple[int, ...]) -> Floats:
    """Draw the light of falling rain, float32 [H, W, 1]."""
    height, width = shape
    veil = Image.new("L", (width, height))
    pen, slant = ImageDraw.Draw(veil), rng.uniform(-0.2, 0.2)
    count = rng.integers(20, 220)
    for x, y, long in rng.uniform((0, 0, 6), (width, height, 24), (count, 3)):
        pen.line((x, y, x + slant * long, y + long), 255)
    return np.asarray(veil, np.float32)[..., None] * rng.uniform(0.05, 0.14)


def add_glow(image: Floats, lamps: Sequence[Lamp], strength: float) -> None:
    """Add discs of light to `image` float32 [H, W, 3] in place."""
    height, width = image.shape[:2]
    for x, y, radius, colour in lamps:
        extent = 3 * radius
        x0, x1 = int(max(0, x - extent)), int(min(width, x + extent + 1))
        y0, y1 = int(max(0, y - extent)), int(min(height, y + extent + 1))
        if x0 >= x1 or y0 >= y1:
            continue
        dy = np.arange(y0, y1, dtype=np.float32)[:, None] - y
        dx = np.arange(x0, x1, dtype=np.float32)[None] - x
        disc = np.exp(-(dx * dx + dy * dy) / np.float32(0.6 * radius * radius))[..., None]
        image[y0:y1, x0:x1] += disc * np.asarray(colour, np.float32) * strength


def photograph(rng: Generator, image: Floats, condition: str) -> Bytes:
    """Simulate the camera: float32 [H, W, 3] (0..255) to uint8 [H, W, 3].

    It varies exposure and tone, and adds blur, noise, drops on the glass and JPEG compression.
    """
    dark = condition in ("dusk", "night")
    level = toned(rng, exposed(rng, image, 0.16 if dark else 0.12))
    soft = blurred(level, rng.uniform(0.15, 0.75))
    sigma = rng.uniform(1.0, 7.0 if dark else 4.5)
    noisy = soft + sigma * rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None]
    if condition == "rain" and rng.random() < 0.7:
        noisy = smeared(rng, noisy)
    return compressed(rng, to_bytes(noisy))


def exposed(rng: Generator, image: Floats, spread: float) -> Floats:
    """Vary exposure (std `spread` of its logarithm), white balance and vignette: 0..1."""
    height, width = image.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    gain = float(np.exp(rng.normal(0.0, spread)))
    balance = gain * rng.normal(1.0, 0.025, 3).astype(np.float32)
    vignette = 1 - rng.uniform(0.02, 0.22) * (x * x + y * y) * 0.5
    return np.clip(image * vignette[..., None] * balance / 255, 0, 1)


def toned(rng: Generator, level: Floats) -> Floats:
    """Vary saturation and tone curve of 0..1; the result is in 0..263."""
    grey = level.mean(axis=2, keepdims=True)
    level = np.clip(grey + (level - grey) * rng.uniform(0.55, 1.2), 0, 1)
    ramp = np.linspace(0, 1, 1024, dtype=np.float32)
    contrast, gamma = rng.uniform(0.25, 1.0), rng.uniform(0.8, 1.1)
    curve = (1 - contrast) * ramp + contrast * ramp * ramp * (3 - 2 * ramp)
    lifted = 255 * (curve**gamma + rng.uniform(0, 0.03))
    return np.asarray(lifted[(level * 1023).astype(np.int16)], np.float32)


def blurred(level: Floats, radius: float) -> Floats:
    """Apply a Gaussian blur in 8 bits; float32 of the same shape."""
    image = Image.fromarray(to_bytes(level)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32)


def smeared(rng: Generator, level: Floats) -> Floats:
    """Blur random patches, as drops on the glass do; float32 of the same shape."""
    smear = blurred(level, 4)
    height, width, _ = level.shape
    drops = np.clip(value_noise(rng, height, width, 22, 2) * 3 - 1.6, 0, 1)[..., None]
    return np.asarray(level + (smear - level) * drops, np.float32)


def compressed(rng: Generator, image: Bytes) -> Bytes:
    """Encode and decode 70 % of the images as JPEG; uint8 of the same shape."""
    if rng.random() >= 0.7:
        return image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    return np.array(Image.open(buffer).convert("RGB"), np.uint8)
