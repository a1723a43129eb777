"""A validation set of a table of pixels whose logits stay in their file."""

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from app.arrays import ArrayFile
from app.calibration.validation import IGNORE, LabelledImage
from app.errors import ArgumentError
from app.logit_checks import (
    Contents,
    check_classes,
    check_integers,
    check_logits,
    checked_labels,
    copied,
    require_images,
)

CHUNK_BYTES = 8 << 20  # of a table, read at a time
CHECK_BYTES = 32  # that checking a row takes beside its logits


class TableLogits:
    """A table: logits [M,K], labels [M], and image_index [M], which image each row came from.

    drive_index [M], if any, says which drive that image came from.

    The rows may be in any order. Where they are not sorted by image, their order is worked out
    when first needed and kept in a file, which takes 16 bytes a row of memory while it is made.
    """

    def __init__(
        self,
        logits: ArrayFile,
        labels: ArrayFile,
        image_index: ArrayFile,
        drive_index: ArrayFile | None,
        num_classes: int,
        ignore_index: int,
    ) -> None:
        check_classes(logits, num_classes)
        for column in (labels, image_index, *([] if drive_index is None else [drive_index])):
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
        self.drives: Sequence[int] = range(len(self._ids))
        if drive_index is not None:
            self.drives = self._find_drives(drive_index)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> LabelledImage:
        if self._starts is None:
            self._arrange()
        assert self._starts is not None  # noqa: S101 - just arranged
        bounds = slice(*self._starts[index : index + 2].tolist())
        rows = bounds if self._order is None else self._order[bounds]
        logits = copied(self._logits.map()[rows])
        labels = checked_labels(self._labels.map()[rows], self.num_classes, self._ignore, "a row")
        return LabelledImage(torch.from_numpy(logits).T, torch.from_numpy(labels))

    def check(self) -> Contents:
        """Read everything once; raises ArgumentError for labels or logits that can't be used."""
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
        total = self._logits.shape[0]
        row = self.num_classes * self._logits.dtype.itemsize + CHECK_BYTES
        size = max(CHUNK_BYTES // row, 1)
        for start in range(0, total, size):
            yield slice(start, min(start + size, total))

    def _count_images(self) -> tuple[bool, set[int]]:
        """Tell whether the rows are sorted by image, and which images there are."""
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

    def _find_drives(self, drive_index: ArrayFile) -> list[int]:
        """Find each image's drive; raises ArgumentError for an image of several."""
        drives: dict[int, int] = {}
        for rows in self._chunks():
            pairs = np.stack([self._image_index.map()[rows], drive_index.map()[rows]], axis=1)
            for image, drive in np.unique(pairs.astype(np.int64), axis=0).tolist():
                if drives.setdefault(image, drive) != drive:
                    raise ArgumentError(
                        f"expected the rows of an image to be of one drive, got image {image} in "
                        f"drives {drives[image]} and {drive}"
                    )
        return [drives[int(image)] for image in self._ids]

    def _arrange(self) -> None:
        """Find each image's rows."""
        ids = self._image_index.map()
        if not self._sorted:
            order = np.argsort(ids, kind="stable")
            ids = ids[order]
            # A deleted file of its own: it goes with this process, however that ends.
            with tempfile.TemporaryFile() as file:
                order.tofile(file)
                file.flush()
                self._order = np.memmap(file, np.int64, "r", shape=order.shape)
        self._starts = np.append(np.searchsorted(ids, self._ids), len(ids))
