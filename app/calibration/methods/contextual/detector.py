"""An opinion on whether labels are right: selectors, how far they are trusted, and where from.

`detector_weight` is the least of a few shares that held-out images can't tell from the best one. Of
images in any weather it is never the whole: what is left of the network's own confidence keeps an
unfamiliar group from harm. How familiar an image is is told by its features' means.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from app.calibration.base import FitContext
from app.calibration.methods.contextual.combine import DetectorParameters
from app.calibration.methods.contextual.features import PLACED, Context, feature_count
from app.calibration.methods.contextual.in_distribution import InDistributionScore
from app.calibration.methods.contextual.networks import PixelSample, Selectors
from app.calibration.solvers import Schedule

DETECTOR_WEIGHTS = (0.0, 0.25, 0.5, 0.75)  # never the selectors alone
ROBUST_DETECTOR_WEIGHTS = (*DETECTOR_WEIGHTS, 1.0)  # but of images that are known to be spoiled


class Detector(nn.Module):
    """Selectors with what is needed to weigh what they say.

    `placed` says whether they look at where on the image a class lies. Fresh from its
    constructor it is trusted with nothing, and finds all images familiar.
    """

    detector_weight: Tensor

    def __init__(self, num_classes: int, *, placed: bool) -> None:
        super().__init__()
        self.num_classes, self.placed = num_classes, placed
        features = feature_count(num_classes) + PLACED * placed
        self.selectors = Selectors(num_classes, features)
        self.register_buffer("detector_weight", torch.zeros(()))
        self.known = InDistributionScore(features)

    def forward(self, context: Context) -> Tensor:
        """Give how far the log-odds of the labels are to move, [N,1,...] of [N,F,...]."""
        features = context.seen(placed=self.placed).movedim(1, -1).flatten(0, -2)
        own = context.odds.flatten()
        odds = self.selectors(features, own, context.first.flatten(), context.second.flatten())
        change = (odds.mean(dim=1) - own).view_as(context.odds)[:, None]
        weighted: Tensor = self.detector_weight * change
        return weighted

    def in_distribution_score(self, means: Tensor) -> Tensor:
        """Mean features of images [N,F or more] to 1 where they are as the fit's, down to 0."""
        in_distribution: Tensor = self.known(means[:, : len(self.known.mean)])
        return in_distribution

    def detector_parameters(self) -> DetectorParameters:
        """Give what weighs the opinion as arrays, for the kernel that serves."""
        known = self.known.mean, self.known.std, self.known.threshold
        return DetectorParameters(*(tensor.numpy() for tensor in (self.detector_weight, *known)))

    def forget(self) -> None:
        """Go back to the beginning."""
        self.load_state_dict(Detector(self.num_classes, placed=self.placed).state_dict())

    def learn(
        self,
        trained: PixelSample,
        held: PixelSample,
        means: Tensor,
        context: FitContext,
        schedule: Schedule,
    ) -> None:
        """Train on some images' pixels, and stop and set the trust on others'.

        `means` [n,F] are the mean features of all these images. Where none of the training pixels
        is mispredicted, or there is but one, there is nothing to learn.
        """
        self.forget()
        self.known.learn(means)
        if len(trained.odds) > 1 and not trained.correct.all() and len(held.odds):
            self.selectors.train_on(trained, held, context, schedule)
            self.detector_weight.fill_(self._least_weight(held))

    @torch.no_grad()
    def _least_weight(self, held: PixelSample) -> float:
        """Find the smallest share whose loss is within a standard error (by image) of the best."""
        detector = self.selectors(held.features, held.odds, held.first, held.second).mean(dim=1)
        losses = []
        weights = ROBUST_DETECTOR_WEIGHTS if self.placed else DETECTOR_WEIGHTS
        for detector_weight in weights:
            odds = held.odds + detector_weight * (detector - held.odds)
            wrongness = binary_cross_entropy_with_logits(odds, held.correct, reduction="none")
            losses.append(held.by_image(wrongness))
        best = losses[int(np.argmin([loss.mean() for loss in losses]))]
        for detector_weight, loss in zip(weights, losses, strict=True):
            worse = loss - best
            if worse.mean() <= worse.std() / max(len(worse) - 1, 1) ** 0.5:
                return detector_weight
        raise AssertionError("the best share is within a standard error of itself")
