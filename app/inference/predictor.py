"""A model that is ready to serve: its folder, its backbone, and test-time augmentation."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from app.errors import ModelError
from app.inference.backbone import Backbone, first_line, open_backbone
from app.inference.card import ModelFolder
from app.inference.emission import warm_up
from app.inference.preprocess import Geometry, preprocess

log = logging.getLogger(__name__)

Tta = Literal["none", "flip", "multiscale"]
SCALES = (0.75, 1.0, 1.25)
WARM_SIZE = (256, 320)


@dataclass(frozen=True)
class Predictor:
    """Turns pictures into logits."""

    folder: ModelFolder
    backbone: Backbone

    def prepare(self, picture: NDArray[np.uint8]) -> tuple[Tensor, Geometry]:
        """Preprocess uint8 RGB [H,W,3] to float32 [1,3,H',W']."""
        planes, geometry = preprocess(picture, self.folder.card.input)
        return torch.from_numpy(planes), geometry

    @torch.inference_mode()
    def logits(self, images: Tensor, tta: Tta = "none") -> Tensor:
        """Images float32 [N,3,H,W] to finite logits float32 [N,K,h,w].

        Views of test-time augmentation are averaged as log-probabilities on the plain view's
        grid. Calibrators are fitted without it, so their record speaks of `tta="none"`.
        """
        if tta == "none":
            return self._run(images)
        if tta == "flip":
            views = [self._run(images), self._run(images.flip(-1)).flip(-1)]
        else:
            views = [self._run(self._rescale(images, scale)) for scale in SCALES]
        grid = views[SCALES.index(1.0) if tta == "multiscale" else 0].shape[-2:]
        total = torch.zeros(())
        for view in views:
            same = view if view.shape[-2:] == grid else F.interpolate(view, grid, mode="bilinear")
            total = total + same.log_softmax(dim=1)
        return total / len(views)

    def _run(self, images: Tensor) -> Tensor:
        logits = torch.from_numpy(self.backbone(images.contiguous().numpy()))
        if torch.isfinite(logits).all():
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


def open_predictor(folder: ModelFolder, device: str, threads: int) -> Predictor:
    """Load a model, run it once on a grey picture, check what comes out, and compile the kernels.

    Raises ModelError where the file does not load or its output does not fit the card.
    """
    predictor = Predictor(folder, open_backbone(folder.path, device, threads))
    size = folder.card.input.size
    shape = (*size, 3) if isinstance(size, tuple) else (*WARM_SIZE, 3)
    images, _ = predictor.prepare(np.full(shape, 128, np.uint8))
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
    warm_up(folder.num_classes)
    log.info("loaded %s on %s", folder.card.name, predictor.backbone.device)
    return predictor
