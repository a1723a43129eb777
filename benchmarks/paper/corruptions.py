"""Corruptions of the study's test images; no method is fitted on images with them."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

Bytes = NDArray[np.uint8]

KINDS = ("jpeg", "pixelation", "motion blur", "overexposure", "colour cast")
JPEG_QUALITY = 8
PIXEL_SIDE = 4
BLUR_PIXELS = 9
EXPOSURE = 1.8
CAST = (1.25, 1.0, 0.7)  # factors of red, green and blue


def corrupted(image: Bytes, kind: str) -> Bytes:
    """Corrupt an image uint8 [H,W,3]; raises KeyError for an unknown kind."""
    return {
        "jpeg": jpeg,
        "pixelation": pixelation,
        "motion blur": motion_blur,
        "overexposure": overexposure,
        "colour cast": colour_cast,
    }[kind](image)


def jpeg(image: Bytes) -> Bytes:
    """Compress to JPEG of quality 8."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer))


def pixelation(image: Bytes) -> Bytes:
    """Average over squares of four pixels' side."""
    decoded = Image.fromarray(image)
    small = decoded.reduce(PIXEL_SIDE)
    return np.asarray(small.resize(decoded.size, Image.Resampling.NEAREST))


def motion_blur(image: Bytes) -> Bytes:
    """Average over nine pixels along the rows, the edge repeated."""
    half = BLUR_PIXELS // 2
    padded = np.pad(image.astype(np.float32), ((0, 0), (half, half), (0, 0)), mode="edge")
    sums = sum(padded[:, shift : shift + image.shape[1]] for shift in range(BLUR_PIXELS))
    return np.asarray(sums / BLUR_PIXELS, np.float32).round().astype(np.uint8)


def overexposure(image: Bytes) -> Bytes:
    """Multiply brightness by 1.8, cut off at white."""
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(EXPOSURE))


def colour_cast(image: Bytes) -> Bytes:
    """Multiply red by 1.25 and blue by 0.7."""
    return np.clip(image * np.array(CAST, np.float32), 0, 255).astype(np.uint8)
