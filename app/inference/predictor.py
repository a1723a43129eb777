"""A model that is ready to serve: its folder, its backbone, and test-time augmentation."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from app.errors import ModelError
from app.inference.backbone import Backbone, first_line, open_backbone
from app.inference.batching import MicroBatches
from app.inference.model_card import ModelFolder
from app.inference.preprocess import (
    Geometry,
    Size,
    normalised,
    plan,
    preprocess,
    resized,
    thumbnail,
)
from app.inference.sliding_window import Strip, Windows, strips, window_axis
from app.inference.threads import ActiveRequests

log = logging.getLogger(__name__)

Tta = Literal["none", "flip", "multiscale"]
SCALES = (0.75, 1.25)  # beside the image's own
WARM_SIZE = (256, 320)


@dataclass(frozen=True)
class PreparedImage:
    """An image on its way into the network: as resized, uint8 RGB, and cut into windows."""

    geometry: Geometry
    windows: Windows
    image: NDArray[np.uint8]

    def thumbnail(self, grid: Size, rows: range) -> Tensor:
        """Give the mean colour of each cell in some rows of the logits' grid: uint8 [3,n,w]."""
        return torch.from_numpy(thumbnail(self.image, self.geometry, grid, rows))


@dataclass(frozen=True)
class Predictor:
    """Turns images into logits."""

    folder: ModelFolder
    backbone: Backbone
    least: Size = (1, 1)  # height and width of the smallest input the network takes

    def prepare_windows(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Lay the windows over uint8 RGB [H,W,3]: one in mode whole, some in mode slide."""
        policy = self.folder.card.input
        geometry = plan((image.shape[0], image.shape[1]), policy, self.least)
        image = resized(image, geometry)
        height, width = geometry.padded
        crop, stride = policy.crop or geometry.padded, policy.stride or geometry.padded
        down, across = (
            window_axis(height, crop[0], stride[0]),
            window_axis(width, crop[1], stride[1]),
        )

        def cut(row: int, column: int) -> Tensor:
            size = down.length, across.length
            return torch.from_numpy(normalised(image, policy, (row, column), size))

        if len(down.starts) == len(across.starts) == 1:
            only = cut(0, 0)
            return PreparedImage(geometry, Windows(down, across, lambda _row, _column: only), image)
        return PreparedImage(geometry, Windows(down, across, cut), image)

    def strips(
        self, prepared: PreparedImage, tta: Tta = "none", receptive_radius: int = 0
    ) -> Iterator[Strip]:
        """Give an image's logits in rows of the grid, from top to bottom.

        `receptive_radius` is how many rows away the neighbours lie that will be read with a row.
        Test-time augmentation acts on each window as on an image of its own.
        """
        blend = self.folder.card.input.blend
        return strips(
            prepared.windows, lambda images: self.logits(images, tta), blend, receptive_radius
        )

    def grid(self, prepared: PreparedImage, tta: Tta = "none") -> Tensor:
        """Give an image's logits [1,K,h,w] whole, as they are served in strips."""
        found = list(self.strips(prepared, tta))
        if len(found) == 1:
            return found[0].logits
        own = [
            logits[:, :, band.cells.start - band.top : band.cells.stop - band.top]
            for logits, band in found
        ]
        return torch.cat(own, dim=2)

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Tensor, Geometry]:
        """Preprocess uint8 RGB [H,W,3] to float32 [1,3,H',W']."""
        planes, geometry = preprocess(image, self.folder.card.input)
        return torch.from_numpy(planes), geometry

    @torch.inference_mode()
    def logits(self, images: Tensor, tta: Tta = "none") -> Tensor:
        """Images float32 [N,3,H,W] to finite logits float32 [N,K,h,w].

        Views of test-time augmentation are averaged as log-probabilities on the plain view's
        grid. Calibrators are fitted without it, so their record speaks of `tta="none"`.
        """
        plain = self._run(images)
        if tta == "none":
            return plain
        total = plain.log_softmax(dim=1)
        if tta == "flip":
            total += self._run(images.flip(-1)).flip(-1).log_softmax(dim=1)
            return total / 2
        for scale in SCALES:
            view = self._run(self._rescale(images, scale))
            if view.shape[-2:] != total.shape[-2:]:
                view = F.interpolate(view, total.shape[-2:], mode="bilinear")
            total += view.log_softmax(dim=1)
        return total / (1 + len(SCALES))

    def _run(self, images: Tensor) -> Tensor:
        logits = torch.from_numpy(self.backbone(images.contiguous().numpy()))
        # A NaN or an infinity anywhere stays one in the sum, which is quick to take.
        if torch.isfinite(logits.sum()):
            return logits
        # A pixel with a NaN knows nothing: all its classes are equally likely.
        broken = logits.isnan().any(dim=1, keepdim=True)
        return torch.where(broken, 0.0, logits).nan_to_num(posinf=3e4, neginf=-3e4)

    def _rescale(self, images: Tensor, scale: float) -> Tensor:
        multiple = self.folder.card.input.multiple_of
        height, width = (
            max(multiple, round(side * scale / multiple) * multiple) for side in images.shape[-2:]
        )
        return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def open_predictor(
    folder: ModelFolder, device: str, threads: int, active_requests: ActiveRequests | None = None
) -> Predictor:
    """Load a model, run it once on a grey image, and check what comes out.

    Raises ModelError where the file does not load or its output does not fit the card.
    """
    backbone = open_backbone(folder.path, device, threads, active_requests)
    if backbone.device == "cuda":
        backbone = MicroBatches(backbone)
    predictor = Predictor(folder, backbone)
    policy = folder.card.input
    if policy.crop is not None:
        images = grey(policy.crop)
    else:
        size = policy.size if isinstance(policy.size, tuple) else WARM_SIZE
        images, _ = predictor.prepare(np.full((*size, 3), 128, np.uint8))
    try:
        logits = predictor.logits(images)
    except Exception as error:
        raise ModelError(
            f"{folder.card.name}: expected a model that takes [1,3,{images.shape[2]},"
            f"{images.shape[3]}], got: {first_line(error)}"
        ) from error
    if logits.ndim != 4 or logits.shape[1] != folder.num_classes:
        raise ModelError(
            f"{folder.card.name}: expected logits [1,{folder.num_classes},h,w], "
            f"got {list(logits.shape)}"
        )
    normalised(np.zeros((1, 1, 3), np.uint8), policy, (0, 0), (1, 1))
    if policy.crop is not None:
        predictor = replace(predictor, least=least_window(predictor, policy.crop, logits))
    log.info("loaded %s on %s", folder.card.name, predictor.backbone.device)
    return predictor


def grey(size: Size) -> Tensor:
    """Make a network's input float32 [1,3,h,w] of one value."""
    return torch.full((1, 3, *size), 0.5)


def least_window(predictor: Predictor, crop: Size, logits: Tensor) -> Size:
    """Find the smallest window a network takes, given its logits [1,K,h,w] on the whole crop.

    Many networks are exported for one size only. Raises ModelError where windows that begin at
    multiples of `multiple_of` would not meet on the grid.
    """
    multiple = predictor.folder.card.input.multiple_of
    grid = logits.shape[2:]
    if any(multiple * grid[axis] % crop[axis] for axis in (0, 1)):
        raise ModelError(
            f"{predictor.folder.card.name}: expected multiple_of to be a multiple of the network's "
            f"cells, got {multiple} and a grid of {tuple(grid)} for a crop of {crop}"
        )
    try:
        smallest = predictor.logits(grey((multiple, multiple))).shape[2:]
    except Exception:  # whatever a network raises for a size it was not made for
        return crop
    fits = all(smallest[axis] * crop[axis] == grid[axis] * multiple for axis in (0, 1))
    return (1, 1) if fits else crop
