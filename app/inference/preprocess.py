"""A picture becomes the network's input; the geometry remembers the way back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TooLargeError
from app.inference.card import InputPolicy, ShortSide

# A picture one pixel wide grows 32-fold when padded to 32: beyond this many pixels a network's
# input may be at most MAX_GROWTH times the picture it is made from.
SMALL_INPUT = 1 << 25
MAX_GROWTH = 4

Picture = NDArray[np.uint8]
Array = NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Heights and widths on the way in: the picture's, resized, and padded."""

    image: Size
    resized: Size
    padded: Size


@dataclass(frozen=True)
class Band:
    """Rows of the backbone's grid that are calibrated and emitted by themselves.

    The logits at hand begin at row `top` of a grid of `height` rows. Of them, `cells` are this
    band's; the rows around are there for what reads neighbours, of which emission reads one below.
    """

    top: int
    height: int
    cells: range


def plan(image: Size, policy: InputPolicy) -> Geometry:
    """Work out the sizes, (height, width) each, for a picture under a policy.

    Raises TooLargeError for a picture so long and thin that it would grow beyond all measure.
    """
    height, width = image
    if policy.size == "native":
        resized = image
    elif isinstance(policy.size, ShortSide):
        ratio = policy.size.short_side / min(image)
        resized = max(1, round(height * ratio)), max(1, round(width * ratio))
    else:
        resized = policy.size
    multiple = policy.multiple_of
    padded = -(-resized[0] // multiple) * multiple, -(-resized[1] // multiple) * multiple
    if padded[0] * padded[1] > max(SMALL_INPUT, MAX_GROWTH * height * width):
        raise TooLargeError(
            f"expected a picture that the model can take in, got {width}x{height}, which its "
            f"input policy makes {padded[1]}x{padded[0]}"
        )
    return Geometry(image, resized, padded)


def preprocess(picture: Picture, policy: InputPolicy) -> tuple[Array, Geometry]:
    """Resize, pad and normalise: uint8 RGB [H,W,3] to float32 [1,3,H',W'] and the geometry.

    Padding repeats the edge at the right and the bottom: black bars would be a new scene.
    """
    geometry = plan((picture.shape[0], picture.shape[1]), policy)
    if geometry.resized != geometry.image:
        size = geometry.resized[1], geometry.resized[0]
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    below = geometry.padded[0] - geometry.resized[0]
    right = geometry.padded[1] - geometry.resized[1]
    if below or right:
        picture = np.pad(picture, ((0, below), (0, right), (0, 0)), mode="edge")
    # One multiply-add a value: x/255 and (x - mean)/std in one go.
    gain = 1 / (255 * np.array(policy.std, np.float32))
    shift = np.array(policy.mean, np.float32) / np.array(policy.std, np.float32)
    planes = np.empty((1, 3, *geometry.padded), np.float32)
    for channel in range(3):
        np.multiply(picture[..., channel], gain[channel], out=planes[0, channel])
        if shift[channel]:
            planes[0, channel] -= shift[channel]
    return planes, geometry
