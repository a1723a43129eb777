"""Compute the logits of labelled images into files, and open these as a validation set."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator
from app.calibration.dataset import IGNORE, LabelledImage
from app.calibration.predictions import Prediction
from app.datasets.images import Pair, content_hash, read_image, read_labels_for
from app.errors import ArgumentError
from app.inference.predictor import Predictor
from app.inference.preprocess import Geometry, Size
from app.inference.sliding_window import Strip
from app.serving.pipeline import predict_logits


class StoredImage(NamedTuple):
    """One image's arrays, files `<kind><number>.npy` of a folder; `content_hash` as in `images`.

    The kinds are `logits` float32 [K,h,w], `image`, its mean colours uint8 [3,h,w], `cells`, the
    labels of the logits' cells [h,w], and `labels`, those of the image [H,W].
    """

    folder: Path
    number: int
    geometry: Geometry
    content_hash: str

    def path(self, kind: str) -> Path:
        """Return the path of an array."""
        return self.folder / f"{kind}{self.number}.npy"

    def load(self, kind: str) -> Tensor:
        """Read an array; raises ArgumentError for a missing or damaged file."""
        path = self.path(kind)
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise ArgumentError(
                f"expected an array in {path.parent.name}/{path.name}, got: {error}"
            ) from error


class StoredLogits:
    """Validation set of stored images, which are read at each access."""

    at_image_size = True

    def __init__(
        self,
        num_classes: int,
        images: Sequence[StoredImage],
        groups: Sequence[int] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.groups = range(len(images)) if groups is None else groups
        self.image_hashes = [image.content_hash for image in images]
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabelledImage:
        load = self._images[index].load
        return LabelledImage(load("logits"), load("cells").long(), load("image"))

    def predict(self, index: int, calibrator: Calibrator) -> tuple[Prediction, Tensor]:
        """Predict one image at its own size; see `PredictsAtImageSize`."""
        image = self._images[index]
        (prediction,) = predict_logits(
            image.load("logits"), image.geometry, [calibrator], image.load("image")
        )
        return prediction, image.load("labels").long()


class CachedLogits(StoredLogits):
    """Validation set whose logits are computed on construction and kept in temporary files.

    Progress and errors are those of `store_logits`.
    """

    def __init__(
        self,
        predictor: Predictor,
        pairs: Sequence[Pair],
        ignore_index: int,
        max_pixels: int,
        progress: Callable[[str, float], None],
        groups: Sequence[int] | None = None,
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="segcal-logits-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        images = store_logits(predictor, pairs, ignore_index, max_pixels, progress, folder)
        super().__init__(predictor.folder.num_classes, images, groups)


def store_logits(
    predictor: Predictor,
    pairs: Sequence[Pair],
    ignore_index: int,
    max_pixels: int,
    progress: Callable[[str, float], None],
    folder: Path,
) -> list[StoredImage]:
    """Compute the logits of images and write them to a folder with labels and mean colours.

    Progress is reported in 0..1, as the stage "logits". Raises InputError for files that can't be
    read and ArgumentError for labels that do not match their image.
    """
    num_classes = predictor.folder.num_classes
    narrowest = np.min_scalar_type(-num_classes)  # signed, as IGNORE is -1
    stored = []
    for number, pair in enumerate(pairs):
        progress("logits", number / len(pairs))
        image = read_image(pair.image, max_pixels, predictor.folder.card.input.scaling)
        prepared = predictor.prepare_windows(image)
        labels = read_labels_for(
            pair,
            prepared.geometry.image,
            num_classes,
            ignore_index,
            max_pixels,
            reduce_zero=predictor.folder.card.output.reduce_zero_label,
        )
        one = StoredImage(folder, number, prepared.geometry, content_hash(pair.image))
        grid = write_logits(predictor.strips(prepared), one.path("logits"))
        cells = to_grid(labels, prepared.geometry, grid)
        np.save(one.path("image"), prepared.thumbnail(grid, range(grid[0])).numpy())
        np.save(one.path("cells"), cells.astype(narrowest))
        np.save(one.path("labels"), labels.astype(narrowest))
        stored.append(one)
    progress("logits", 1.0)
    return stored


def write_logits(strips: Iterable[Strip], path: Path) -> Size:
    """Write an image's logits float32 [K,h,w] to a .npy file, strip by strip; return (h, w)."""
    file: NDArray[np.float32] | None = None
    size = 0, 0
    for (logits,), band in strips:
        size = band.height, logits.shape[2]
        if file is None:
            shape = logits.shape[0], *size
            file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        first = band.cells.start - band.top
        file[:, band.cells.start : band.cells.stop] = logits[:, first : first + len(band.cells)]
    return size


def to_grid(
    labels: NDArray[np.int32], geometry: Geometry, grid: tuple[int, int]
) -> NDArray[np.int32]:
    """Sample labels [H,W] at the cell centres of the logits' grid [h,w]; IGNORE in the padding."""
    rows, columns = (
        (np.arange(grid[axis]) + 0.5)
        / grid[axis] * geometry.padded[axis]
        / geometry.resized[axis] * geometry.image[axis]
        for axis in (0, 1)
    )  # fmt: skip
    inside = (rows < geometry.image[0])[:, None] & (columns < geometry.image[1])[None, :]
    y = np.minimum(rows.astype(int), geometry.image[0] - 1)
    x = np.minimum(columns.astype(int), geometry.image[1] - 1)
    return np.where(inside, labels[np.ix_(y, x)], IGNORE).astype(np.int32)
