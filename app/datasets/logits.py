"""Open validation sets of uploaded logits, which stay in their files and are read by image.

`open_logits` returns maps or a table of pixels, by the arrays' shapes. Every error is raised
before a fit starts: shapes on opening, values by `check`.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import Calibrator
from app.calibration.dataset import IGNORE, LabelledImage
from app.calibration.predictions import Prediction
from app.datasets.arrays import ArrayFile
from app.errors import ArgumentError
from app.inference.preprocess import Geometry
from app.serving.pipeline import predict_logits

MAX_STRIDE_RATIO = 1.5  # between the strides of the two axes
PROBED_PIXELS = 4096  # pixels whose sums distinguish probabilities from logits
SUM_TOLERANCE = 4e-3  # of the sum of K probabilities in float16
CHUNK_BYTES = 8 << 20  # of a table's rows that are checked at a time
ROW_CHECK_BYTES = 32  # memory for the check of one row beside its logits


class Contents(NamedTuple):
    """Counts of images with labelled pixels and of labelled pixels."""

    images: int
    pixels: int
    maps: bool  # false for a table of pixels


class DenseLogits:
    """Logit maps [N,K,h,w] with label maps [N,H,W], sampled at the centres of the grid's cells.

    The grid must cover exactly the labelled image, without padding. `group_index` [N] is the group
    of each image. Raises ArgumentError for shapes that do not match.
    """

    def __init__(
        self,
        logits: ArrayFile,
        labels: ArrayFile,
        group_index: ArrayFile | None,
        num_classes: int,
        ignore_index: int,
    ) -> None:
        check_classes(logits, num_classes)
        if len(labels.shape) != 3 or labels.shape[0] != logits.shape[0]:
            raise ArgumentError(f"expected labels [N,H,W] of the {logits}, got {labels}")
        check_grids(logits, labels)
        require_images(logits.shape[0])
        self.groups: Sequence[int] = range(logits.shape[0])
        if group_index is not None:
            if group_index.shape != logits.shape[:1]:
                raise ArgumentError(f"expected group_index [N] of the {logits}, got {group_index}")
            self.groups = group_index.map().tolist()
        self.num_classes = num_classes
        self._logits, self._labels, self._ignore = logits, labels, ignore_index
        self.at_image_size = labels.shape[1:] != logits.shape[2:]
        # The pixel that contains the cell's centre, as in torch's mode "nearest-exact".
        self._rows, self._columns = (
            ((np.arange(cells) + 0.5) * pixels / cells).astype(np.int64)
            for cells, pixels in zip(logits.shape[2:], labels.shape[1:], strict=True)
        )

    def __len__(self) -> int:
        return self._logits.shape[0]

    def __getitem__(self, index: int) -> LabelledImage:
        labels = self._labels_of(index)[np.ix_(self._rows, self._columns)]
        return LabelledImage(self._logits_of(index), torch.from_numpy(labels))

    def predict(self, index: int, calibrator: Calibrator) -> tuple[Prediction, Tensor]:
        """Predict one image at the size of its labels; see `PredictsAtImageSize`."""
        labels = self._labels_of(index)
        size = labels.shape[0], labels.shape[1]
        (prediction,) = predict_logits(
            self._logits_of(index), Geometry(size, size, size), [calibrator]
        )
        return prediction, torch.from_numpy(labels)

    def check(self) -> Contents:
        """Read the whole set once; raises ArgumentError for invalid labels or logits."""
        images = pixels = 0
        for index in range(len(self)):
            image = self[index]
            logits, labels = image.logits.numpy(), image.labels.numpy()
            labelled = labels != IGNORE
            check_logits(logits, labelled, f"image {index}")
            images += bool(labelled.any())
            pixels += int(labelled.sum())
        require_images(images)
        return Contents(images, pixels, maps=True)

    def _logits_of(self, index: int) -> Tensor:
        return torch.from_numpy(copied(self._logits.map()[index]))

    def _labels_of(self, index: int) -> NDArray[np.int64]:
        """Read one image's labels [H,W]."""
        where = f"image {index}"
        return checked_labels(self._labels.map()[index], self.num_classes, self._ignore, where)


class TableLogits:
    """Table of pixels: logits [M,K], labels [M] and the image of each row, `image_index` [M].

    `group_index` [M], if given, is the group of that image. Rows may be in any order: where they
    are not sorted by image, the first access sorts their indices into a temporary file, which
    takes 16 bytes of memory per row. Raises ArgumentError for shapes that do not match and for an
    image of several groups.
    """

    def __init__(
        self,
        logits: ArrayFile,
        labels: ArrayFile,
        image_index: ArrayFile,
        group_index: ArrayFile | None,
        num_classes: int,
        ignore_index: int,
    ) -> None:
        check_classes(logits, num_classes)
        for column in (labels, image_index, *([] if group_index is None else [group_index])):
            if column.shape != logits.shape[:1]:
                raise ArgumentError(
                    f"expected {column.name} [M] for the rows of {logits}, got {column}"
                )
        self.num_classes = num_classes
        self._logits, self._labels, self._ignore = logits, labels, ignore_index
        self._image_index = image_index
        self._sorted, images = self._count_images()
        self._ids = np.fromiter(sorted(images), image_index.dtype.newbyteorder("="), len(images))
        require_images(len(images))
        self._order: NDArray[np.int64] | None = None
        self._starts: NDArray[np.int64] | None = None
        self.groups: Sequence[int] = range(len(self._ids))
        if group_index is not None:
            self.groups = self._find_groups(group_index)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> LabelledImage:
        if self._starts is None:
            self._sort_rows()
        assert self._starts is not None  # noqa: S101 - set by _sort_rows
        bounds = slice(*self._starts[index : index + 2].tolist())
        rows = bounds if self._order is None else self._order[bounds]
        logits = copied(self._logits.map()[rows])
        labels = checked_labels(self._labels.map()[rows], self.num_classes, self._ignore, "a row")
        return LabelledImage(torch.from_numpy(logits).T, torch.from_numpy(labels))

    def check(self) -> Contents:
        """Read the whole set once; raises ArgumentError for invalid labels or logits."""
        images: set[int] = set()
        pixels = 0
        for rows in self._chunks():
            where = f"rows {rows.start} to {rows.stop - 1}"
            labels = checked_labels(self._labels.map()[rows], self.num_classes, self._ignore, where)
            labelled = labels != IGNORE
            check_logits(self._logits.map()[rows].T, labelled, where)
            images.update(np.unique(self._image_index.map()[rows][labelled]).tolist())
            pixels += int(labelled.sum())
        require_images(len(images))
        return Contents(len(images), pixels, maps=False)

    def _chunks(self) -> Iterator[slice]:
        """Iterate over slices of rows that take at most 8 MiB to check."""
        total = self._logits.shape[0]
        row = self.num_classes * self._logits.dtype.itemsize + ROW_CHECK_BYTES
        size = max(CHUNK_BYTES // row, 1)
        for start in range(0, total, size):
            yield slice(start, min(start + size, total))

    def _count_images(self) -> tuple[bool, set[int]]:
        """Return whether the rows are sorted by image, and the set of image ids."""
        check_integers(self._image_index)
        images: set[int] = set()
        ordered, last = True, None
        for rows in self._chunks():
            ids = self._image_index.map()[rows]
            ordered = ordered and bool((ids[1:] >= ids[:-1]).all())
            ordered = ordered and (last is None or bool(ids[0] >= last))
            last = ids[-1]
            images.update(np.unique(ids).tolist())
        return ordered, images

    def _find_groups(self, group_index: ArrayFile) -> list[int]:
        """Return the group of each image; raises ArgumentError for an image of several groups."""
        groups: dict[int, int] = {}
        for rows in self._chunks():
            pairs = np.stack([self._image_index.map()[rows], group_index.map()[rows]], axis=1)
            for image, group in np.unique(pairs.astype(np.int64), axis=0).tolist():
                if groups.setdefault(image, group) != group:
                    raise ArgumentError(
                        f"expected the rows of an image to be of one group, got image {image} in "
                        f"groups {groups[image]} and {group}"
                    )
        return [groups[int(image)] for image in self._ids]

    def _sort_rows(self) -> None:
        """Compute the first row of each image and, for unsorted rows, their order by image."""
        ids = self._image_index.map()
        if not self._sorted:
            order = np.argsort(ids, kind="stable")
            ids = ids[order]
            # An unlinked file, which the system removes with the process, even after a kill.
            with tempfile.TemporaryFile() as file:
                order.tofile(file)
                file.flush()
                self._order = np.memmap(file, np.int64, "r", shape=order.shape)
        self._starts = np.append(np.searchsorted(ids, self._ids), len(ids))


def open_logits(
    arrays: Mapping[str, ArrayFile], num_classes: int, ignore_index: int
) -> DenseLogits | TableLogits:
    """Open the arrays `logits`, `labels`, `image_index` and `group_index` as a validation set.

    Raises ArgumentError for missing arrays and for dtypes or shapes that do not match.
    """
    missing = sorted({"logits", "labels"} - set(arrays))
    if missing:
        raise ArgumentError(f"expected logits and labels, got no {' and no '.join(missing)}")
    logits, labels = arrays["logits"], arrays["labels"]
    if (logits.dtype.kind, logits.dtype.itemsize) not in (("f", 2), ("f", 4)):
        raise ArgumentError(f"expected logits of float16 or float32, got {logits}")
    check_integers(labels)
    groups = arrays.get("group_index")
    if groups is not None:
        check_integers(groups)
    if len(logits.shape) == 4:
        if "image_index" in arrays:
            raise ArgumentError(
                f"expected image_index with a table [M,K] only, got it with {logits}"
            )
        return DenseLogits(logits, labels, groups, num_classes, ignore_index)
    if len(logits.shape) != 2:
        raise ArgumentError(f"expected logits [N,K,h,w] or [M,K], got {logits}")
    if "image_index" not in arrays:
        raise ArgumentError(
            f"expected image_index [M] with a table, to split it by image, got only {logits}"
        )
    return TableLogits(logits, labels, arrays["image_index"], groups, num_classes, ignore_index)


def check_classes(logits: ArrayFile, num_classes: int) -> None:
    """Raise ArgumentError unless the logits [N,K,...] have K = `num_classes`."""
    if logits.shape[1] != num_classes:
        raise ArgumentError(f"expected logits of the model's {num_classes} classes, got {logits}")


def check_integers(array: ArrayFile) -> None:
    """Raise ArgumentError for an array of another type than integers."""
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"expected {array.name} of integers, got {array}")


def check_grids(logits: ArrayFile, labels: ArrayFile) -> None:
    """Raise ArgumentError for labels coarser than the logits or of another aspect ratio.

    The latter are mostly transposed.
    """
    strides = [
        pixels / cells for cells, pixels in zip(logits.shape[2:], labels.shape[1:], strict=True)
    ]
    if min(strides) < 1 or max(strides) > MAX_STRIDE_RATIO * min(strides):
        raise ArgumentError(
            f"expected labels on the logits' grid or at the images' size, got {logits}, {labels}"
        )


def require_images(count: int) -> None:
    """Raise ArgumentError for fewer images than fit and test need."""
    if count < 2:
        raise ArgumentError(
            f"expected at least 2 images with labels, to fit on some and hold some out, got {count}"
        )


def checked_labels(
    labels: NDArray[Any], num_classes: int, ignore_index: int, where: str
) -> NDArray[np.int64]:
    """Copy labels of any integer type and shape to int64, with IGNORE for void.

    Raises ArgumentError, which names the place `where`, for labels out of range.
    """
    void = labels == ignore_index
    wrong = ((labels < 0) | (labels >= num_classes)) & ~void
    if wrong.any():
        raise ArgumentError(
            f"expected labels in 0..{num_classes - 1} or {ignore_index} for void, "
            f"got {labels[wrong].flat[0]} in {where}"
        )
    return np.where(void, IGNORE, labels.astype(np.int64))


def check_logits(logits: NDArray[Any], labelled: NDArray[np.bool_], where: str) -> None:
    """Raise ArgumentError unless [K,*grid] are logits at each labelled pixel [*grid]."""
    _check_finite(logits, labelled, where)
    _reject_probabilities(logits, labelled, where)


def _check_finite(logits: NDArray[Any], labelled: NDArray[np.bool_], where: str) -> None:
    """Raise ArgumentError for logits [K,*grid] that are NaN or infinite at a labelled pixel."""
    wrong = ~np.isfinite(logits).all(axis=0) & labelled
    if wrong.any():
        raise ArgumentError(
            f"expected finite logits at every labelled pixel, got NaN or infinity at "
            f"{int(wrong.sum())} in {where}"
        )


def _reject_probabilities(logits: NDArray[Any], labelled: NDArray[np.bool_], where: str) -> None:
    """Raise ArgumentError for probabilities [K,*grid]: none below 0, with a sum of 1 by pixel.

    Taken as logits, they would be fitted like the output of a network of low confidence. One-hot
    values are accepted.
    """
    pixels = np.flatnonzero(labelled)[:PROBED_PIXELS]
    probed = logits.reshape(len(logits), -1)[:, pixels].astype(np.float32)
    fractional = ((probed > 0) & (probed < 1)).any() and (probed >= 0).all()
    if fractional and (abs(probed.sum(axis=0) - 1) < SUM_TOLERANCE).all():
        raise ArgumentError(
            f"expected logits, got probabilities, which add up to 1 at each pixel of {where}; "
            f"their logarithms will do"
        )


def copied(values: NDArray[Any]) -> NDArray[Any]:
    """Copy an array of a file to memory, in the machine's byte order."""
    return np.array(values, values.dtype.newbyteorder("="), order="C")
