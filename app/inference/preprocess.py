"""Preprocessing of images: resize, pad, cut windows, normalise; and thumbnails on the grid."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TooLargeError
from app.inference.model_card import InputPolicy, Resample, ShortSide
from app.numerics import compiled

# An image one pixel wide grows 32-fold when padded to 32: an input of more pixels than this may
# be at most MAX_GROWTH times its image.
SMALL_INPUT = 1 << 25
MAX_GROWTH = 4
FILTERS: dict[Resample, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}

ImageArray = NDArray[np.uint8]
Array = NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Heights and widths in pixels: of the image, once resized, and once padded."""

    image: Size
    resized: Size
    padded: Size


@dataclass(frozen=True)
class Band:
    """Rows of the backbone's grid that are calibrated and postprocessed separately.

    A band's logits begin at row `top` of a grid of `height` rows. Its own rows are `cells`; the
    others are context for calibrators that read neighbours and for upsampling, which reads one
    row below.
    """

    top: int
    height: int
    cells: range

    @classmethod
    def whole(cls, height: int) -> Self:
        """Return the band of all rows of a grid."""
        return cls(0, height, range(height))


def plan(image: Size, policy: InputPolicy, min_size: Size = (1, 1)) -> Geometry:
    """Compute the sizes, (height, width) each, of an image under a policy.

    A smaller image is padded to `min_size`. Raises TooLargeError for an image so long and thin
    that its input has more than SMALL_INPUT pixels and MAX_GROWTH times the image's.
    """
    height, width = image
    if policy.size == "native":
        resized = image
    elif isinstance(policy.size, ShortSide):
        resized = _scaled(image, policy.size.short_side / min(image))
    elif policy.fit == "letterbox":
        resized = _scaled(image, min(policy.size[0] / height, policy.size[1] / width))
        min_size = max(policy.size[0], min_size[0]), max(policy.size[1], min_size[1])
    else:
        resized = policy.size
    multiple = policy.multiple_of
    padded = (
        -(-max(resized[0], min_size[0]) // multiple) * multiple,
        -(-max(resized[1], min_size[1]) // multiple) * multiple,
    )
    if padded[0] * padded[1] > max(SMALL_INPUT, MAX_GROWTH * height * width):
        raise TooLargeError(
            f"expected an image that the model can take in, got {width}x{height}, which its "
            f"input policy makes {padded[1]}x{padded[0]}"
        )
    return Geometry(image, resized, padded)


def _scaled(image: Size, ratio: float) -> Size:
    """Return a height and width times a ratio, each at least 1."""
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def preprocess(image: ImageArray, policy: InputPolicy) -> tuple[Array, Geometry]:
    """Resize, pad and normalise uint8 RGB [H,W,3]; return float32 [1,3,H',W'] and the geometry."""
    geometry = plan((image.shape[0], image.shape[1]), policy)
    return normalised(resized(image, geometry, policy), policy, (0, 0), geometry.padded), geometry


def resized(image: ImageArray, geometry: Geometry, policy: InputPolicy) -> ImageArray:
    """Resize uint8 RGB [H,W,3]; return the image itself if its size is unchanged.

    All filters of Pillow cover the source pixels of a smaller image, so that none is skipped.
    """
    if geometry.resized == geometry.image:
        return image
    size = geometry.resized[1], geometry.resized[0]
    return np.asarray(Image.fromarray(image).resize(size, FILTERS[policy.resample]))


def normalised(image: ImageArray, policy: InputPolicy, corner: Size, size: Size) -> Array:
    """Cut a window from uint8 RGB [H,W,3], pad and normalise it; return float32 [1,3,h,w].

    The window begins at `corner` (row, column), inside the image. Padding at the right and the
    bottom repeats the edge: networks are not trained on black bars. The planes are in the order of
    the policy's `channels`.
    """
    # x/255 and (x - mean)/std as one multiply-add.
    mean, std = np.array(policy.mean, np.float32), np.array(policy.std, np.float32)
    gain: Array = np.reciprocal(255 * std)
    planes = np.empty((1, 3, *size), np.float32)
    red = 0 if policy.channels == "rgb" else 2
    _normalise(_lines(image), corner, gain, mean / std, red, planes[0])
    return planes


def thumbnail(image: ImageArray, geometry: Geometry, grid: Size, rows: range) -> ImageArray:
    """Compute the mean colour of a resized image in some rows of a grid (h, w): uint8 [3,n,w].

    Padding repeats the image's edge.
    """
    means = np.empty((3, len(rows), grid[1]), np.uint8)
    down = _edges(rows, geometry.padded[0], grid[0])
    across = _edges(range(grid[1]), geometry.padded[1], grid[1])
    _average(_lines(image), down, across, means)
    return means


def _edges(cells: range, pixels: int, count: int) -> NDArray[np.int64]:
    """Return the first pixel of each of some cells, and the end of the last: int64 [n+1]."""
    edges: NDArray[np.int64] = np.arange(cells.start, cells.stop + 1) * pixels // count
    return edges


def _lines(image: ImageArray) -> ImageArray:
    """View an image as read-only [H,3W], the form for which the kernels are compiled."""
    lines = image.reshape(len(image), -1)
    lines.flags.writeable = False
    return lines


@compiled
def _average(
    lines: ImageArray, down: NDArray[np.int64], across: NDArray[np.int64], means: ImageArray
) -> None:
    """Write the mean colours of cells, given by their edges, to uint8 [3,n,w]."""
    last = len(lines) - 1, lines.shape[1] // 3 - 1
    sums = np.empty((means.shape[2], 3), np.int64)
    for y in range(means.shape[1]):
        # A cell smaller than a pixel has the colour of the pixel that it begins in.
        tall = max(down[y + 1] - down[y], 1)
        sums[:] = 0
        for i in range(down[y], down[y] + tall):
            line = lines[min(i, last[0])]
            for x in range(means.shape[2]):
                for j in range(across[x], max(across[x + 1], across[x] + 1)):
                    at = 3 * min(j, last[1])
                    sums[x, 0] += line[at]
                    sums[x, 1] += line[at + 1]
                    sums[x, 2] += line[at + 2]
        for x in range(means.shape[2]):
            count = tall * max(across[x + 1] - across[x], 1)
            for colour in range(3):
                means[colour, y, x] = np.uint8(np.rint(sums[x, colour] / count))


@compiled
def _normalise(
    lines: ImageArray, corner: Size, gain: Array, shift: Array, red_at: int, planes: Array
) -> None:
    """Write a normalised window to float32 [3,h,w], with red in plane 0 or 2."""
    # The inner loop writes all three colours: one loop for each takes ten times as long.
    inside = min(lines.shape[1] // 3 - corner[1], planes.shape[2])
    for y in range(planes.shape[1]):
        line = lines[min(corner[0] + y, len(lines) - 1), 3 * corner[1] :]
        red, green, blue = planes[red_at, y], planes[1, y], planes[2 - red_at, y]
        for x in range(inside):
            red[x] = np.float32(line[3 * x]) * gain[0] - shift[0]
            green[x] = np.float32(line[3 * x + 1]) * gain[1] - shift[1]
            blue[x] = np.float32(line[3 * x + 2]) * gain[2] - shift[2]
        for row in (red, green, blue):
            row[inside:] = row[inside - 1]
