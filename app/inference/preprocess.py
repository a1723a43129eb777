"""An image becomes the network's input; the geometry remembers the way back."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TooLargeError
from app.inference.model_card import InputPolicy, ShortSide
from app.numerics import compiled

# An image one pixel wide grows 32-fold when padded to 32: beyond this many pixels a network's
# input may be at most MAX_GROWTH times the image it is made from.
SMALL_INPUT = 1 << 25
MAX_GROWTH = 4

ImageArray = NDArray[np.uint8]
Array = NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Heights and widths on the way in: the image's, resized, and padded."""

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

    @classmethod
    def whole(cls, height: int) -> Self:
        """Take a grid of so many rows as one band."""
        return cls(0, height, range(height))


def plan(image: Size, policy: InputPolicy, least: Size = (1, 1)) -> Geometry:
    """Work out the sizes, (height, width) each, for an image under a policy.

    The image is padded to `least`, the smallest a network takes, if it is smaller. Raises
    TooLargeError for an image so long and thin that it would grow beyond all measure.
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
    padded = (
        max(-(-resized[0] // multiple) * multiple, least[0]),
        max(-(-resized[1] // multiple) * multiple, least[1]),
    )
    if padded[0] * padded[1] > max(SMALL_INPUT, MAX_GROWTH * height * width):
        raise TooLargeError(
            f"expected an image that the model can take in, got {width}x{height}, which its "
            f"input policy makes {padded[1]}x{padded[0]}"
        )
    return Geometry(image, resized, padded)


def preprocess(image: ImageArray, policy: InputPolicy) -> tuple[Array, Geometry]:
    """Resize, pad and normalise: uint8 RGB [H,W,3] to float32 [1,3,H',W'] and the geometry."""
    geometry = plan((image.shape[0], image.shape[1]), policy)
    return normalised(resized(image, geometry), policy, (0, 0), geometry.padded), geometry


def resized(image: ImageArray, geometry: Geometry) -> ImageArray:
    """Resize uint8 RGB [H,W,3] bilinearly; an image of the right size is handed back."""
    if geometry.resized == geometry.image:
        return image
    size = geometry.resized[1], geometry.resized[0]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def thumbnail(image: ImageArray, geometry: Geometry, grid: Size, rows: range) -> ImageArray:
    """Average a resized image's colours over cells of the logits' grid (h, w): uint8 [3,n,w].

    Some rows are given; what lies in the padding has the edge's colours.
    """
    seen = np.empty((3, len(rows), grid[1]), np.uint8)
    down = _edges(rows, geometry.padded[0], grid[0])
    across = _edges(range(grid[1]), geometry.padded[1], grid[1])
    _average(_lines(image), down, across, seen)
    return seen


def _edges(cells: range, pixels: int, count: int) -> NDArray[np.int64]:
    """Give where some of an axis' `count` cells begin, and where the last ends."""
    edges: NDArray[np.int64] = np.arange(cells.start, cells.stop + 1) * pixels // count
    return edges


def _lines(image: ImageArray) -> ImageArray:
    """Lay colours side by side: [H,3W]. Images of either kind share one compiled form."""
    lines = image.reshape(len(image), -1)
    lines.flags.writeable = False
    return lines


@compiled
def _average(
    lines: ImageArray, down: NDArray[np.int64], across: NDArray[np.int64], seen: ImageArray
) -> None:
    last = len(lines) - 1, lines.shape[1] // 3 - 1
    sums = np.empty((seen.shape[2], 3), np.int64)
    for y in range(seen.shape[1]):
        # A cell of a grid that is finer than the pixels has the one it begins in.
        tall = max(down[y + 1] - down[y], 1)
        sums[:] = 0
        for i in range(down[y], down[y] + tall):
            line = lines[min(i, last[0])]
            for x in range(seen.shape[2]):
                for j in range(across[x], max(across[x + 1], across[x] + 1)):
                    at = 3 * min(j, last[1])
                    sums[x, 0] += line[at]
                    sums[x, 1] += line[at + 1]
                    sums[x, 2] += line[at + 2]
        for x in range(seen.shape[2]):
            count = tall * max(across[x + 1] - across[x], 1)
            for colour in range(3):
                seen[colour, y, x] = np.uint8(np.rint(sums[x, colour] / count))


def normalised(image: ImageArray, policy: InputPolicy, corner: Size, size: Size) -> Array:
    """Cut a window, pad and normalise it: uint8 RGB [H,W,3] to float32 [1,3,h,w].

    The window begins at `corner` (row, column), inside the image. Padding repeats the edge at
    the right and the bottom: black bars would be a new scene.
    """
    # One multiply-add a value: x/255 and (x - mean)/std in one go.
    mean, std = np.array(policy.mean, np.float32), np.array(policy.std, np.float32)
    gain: Array = np.reciprocal(255 * std)
    planes = np.empty((1, 3, *size), np.float32)
    _normalise(_lines(image), corner, gain, mean / std, planes[0])
    return planes


@compiled
def _normalise(lines: ImageArray, corner: Size, gain: Array, shift: Array, planes: Array) -> None:
    # Colours side by side: an inner loop over one of them alone takes ten times as long.
    inside = min(lines.shape[1] // 3 - corner[1], planes.shape[2])
    for y in range(planes.shape[1]):
        line = lines[min(corner[0] + y, len(lines) - 1), 3 * corner[1] :]
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(inside):
            red[x] = np.float32(line[3 * x]) * gain[0] - shift[0]
            green[x] = np.float32(line[3 * x + 1]) * gain[1] - shift[1]
            blue[x] = np.float32(line[3 * x + 2]) * gain[2] - shift[2]
        for row in (red, green, blue):
            row[inside:] = row[inside - 1]
