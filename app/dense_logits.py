"""A validation set of maps whose logits stay in their file."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.answers import answer_labelled
from app.arrays import ArrayFile
from app.calibration.base import Calibrator
from app.calibration.emitted import Emitted
from app.calibration.validation import IGNORE, LabelledImage
from app.errors import ArgumentError
from app.inference.preprocess import Geometry
from app.logit_checks import (
    Contents,
    check_classes,
    check_grids,
    check_logits,
    checked_labels,
    copied,
    require_images,
)


class DenseLogits:
    """Maps: logits [N,K,h,w] with labels [N,H,W], taken to the grid at its cells' centres.

    The logits' grid must cover the labelled picture and nothing beyond it.
    """

    def __init__(
        self,
        logits: ArrayFile,
        labels: ArrayFile,
        drive_index: ArrayFile | None,
        num_classes: int,
        ignore_index: int,
    ) -> None:
        check_classes(logits, num_classes)
        if len(labels.shape) != 3 or labels.shape[0] != logits.shape[0]:
            raise ArgumentError(f"expected labels [N,H,W] of the {logits}, got {labels}")
        check_grids(logits, labels)
        require_images(logits.shape[0])
        self.drives: Sequence[int] = range(logits.shape[0])
        if drive_index is not None:
            if drive_index.shape != logits.shape[:1]:
                raise ArgumentError(f"expected drive_index [N] of the {logits}, got {drive_index}")
            self.drives = drive_index.map().tolist()
        self.num_classes = num_classes
        self._logits, self._labels, self._ignore = logits, labels, ignore_index
        # nearest-exact: the pixel below the cell's centre
        self._rows, self._columns = (
            ((np.arange(cells) + 0.5) * pixels / cells).astype(np.int64)
            for cells, pixels in zip(logits.shape[2:], labels.shape[1:], strict=True)
        )

    def __len__(self) -> int:
        return self._logits.shape[0]

    def __getitem__(self, index: int) -> LabelledImage:
        labels = self._labels_of(index)[np.ix_(self._rows, self._columns)]
        return LabelledImage(self._logits_of(index), torch.from_numpy(labels))

    def emitted(self, index: int, calibrator: Calibrator) -> Emitted:
        """Answer one image at its labels' size."""
        labels = self._labels_of(index)
        size = (labels.shape[0], labels.shape[1])
        return answer_labelled(
            self._logits_of(index), labels, Geometry(size, size, size), calibrator
        )

    def check(self) -> Contents:
        """Read everything once; raises ArgumentError for labels or logits that can't be used."""
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
