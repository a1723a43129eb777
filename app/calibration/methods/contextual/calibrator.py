"""Contextual scaling: a misclassification detector moves each pixel's confidence.

    log-odds of the confidence = own log-odds + f * g(features of the pixel)

The own log-odds are those of the top probability after temperature scaling, or uncalibrated where
that is better on held-out images. g is a small network that predicts whether the label is correct
(Wang et al. 2023 route pixels by one). f, one number in 0..1 for each image, is its in-distribution
score: on images unlike those of the fit the detector has no say. The pixel's temperature is the one
at which the top probability has these log-odds, so neither labels nor the order of classes change.
"""

import math
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from app.calibration.base import (
    MAX_LOG_ODDS,
    Calibrator,
    FitContext,
    Invariances,
    LogOddsShift,
    finite_logits,
    uniform_where_broken,
)
from app.calibration.dataset import ValidationSet
from app.calibration.methods.contextual.detector import Detector, PixelSample, sample_pixels
from app.calibration.methods.contextual.features import (
    MAX_STRIDE,
    RECEPTIVE_RADIUS,
    Features,
    compute_features,
    interpolated,
    stride_of,
    subsampled,
)
from app.calibration.methods.contextual.in_distribution import (
    InDistributionScore,
    image_statistics,
)
from app.calibration.methods.contextual.kernels import Weights, compute_shift
from app.calibration.methods.temperature import fit_inverse_temperature_if_better
from app.calibration.sampling import count_classes, require_two_classes
from app.calibration.splits import split
from app.calibration.top_class import scale_for, top_log_odds

TRAIN_FRACTION = 0.75  # of the images; the others choose the round of training


class Contextual(Calibrator):
    """softmax(b z) with the b of each pixel at which its top probability is as detected.

    Works on maps [N,K,h,w] and on tables [N,K,...], whose pixels have no neighbourhood.
    """

    method: ClassVar[str] = "contextual"
    invariances: ClassVar[Invariances] = Invariances(
        translation=True,
        argmax=True,
        order=True,
        # The next subsampled cell is interpolated with.
        receptive_radius=MAX_STRIDE * (RECEPTIVE_RADIUS + 1) - 1,
    )
    auto_rank: ClassVar[int | None] = 6
    combines_with_selective: ClassVar[bool] = False
    beta: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.detector = Detector(num_classes)
        self.score = InDistributionScore(num_classes)
        self.register_buffer("beta", torch.ones(()))

    @classmethod
    def for_warm_up(cls, num_classes: int) -> Self:
        """Return an unfitted calibrator whose detector changes confidence, so that kernels run."""
        calibrator = cls(num_classes)
        calibrator.detector.offset.fill_(1)
        return calibrator

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,...] to log-probabilities."""
        if logits.ndim == 2:  # a table whose rows are pixels
            return self.forward(logits.T[None])[0].T
        logs = (finite_logits(logits) * self.beta).log_softmax(dim=1)
        if not torch.compiler.is_exporting() and not self.detector.trained:
            return uniform_where_broken(logs, logits)
        own, shift = self._own_and_shift(logs)
        target = (own + shift).clamp_min(-math.log(self.num_classes - 1))  # 1/K
        calibrated = (logs * scale_for(logs, target)).log_softmax(dim=1)
        return uniform_where_broken(torch.where(shift == 0, logs, calibrated), logits)

    def predict_errors(self, logits: Tensor) -> Tensor | None:
        """Mark the pixels of [N,K,...] whose label is more probably wrong than correct."""
        if not self.detector.trained:
            return None
        own, shift = self._own_and_shift((finite_logits(logits) * self.beta).log_softmax(dim=1))
        return (own + shift)[:, 0] < 0

    def _own_and_shift(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute own log-odds and their shift, [N,1,...] each, from log-probabilities."""
        stride = stride_of(logs)
        shift, scores = self._shift_and_scores(subsampled(logs, stride))
        shift = shift[:, None] * scores.view(-1, *[1] * (logs.ndim - 1))
        own = top_log_odds(logs).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)  # as in training
        return own, interpolated(shift, tuple(logs.shape[2:]), stride)

    def _shift_and_scores(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the detector's shift [N,...] and the images' scores [N] of subsampled maps."""
        features = self.features(logs)
        scores: Tensor = self.score(image_statistics(features, self.num_classes))
        return self.detector.on_image(features), scores

    def shift_of_cells(self, logits: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Compute the shift by torch; None for an untrained detector, except in an export."""
        if not torch.compiler.is_exporting() and not self.detector.trained:
            return None
        stride = stride_of(logits)
        cells = finite_logits(subsampled(logits, stride)) * self.beta
        return *self._shift_and_scores(cells.log_softmax(dim=1)), stride

    def scale(self) -> float | None:
        """Return the inverse temperature."""
        return self.beta.item()

    def log_odds_shift(self, logits: Tensor) -> LogOddsShift | None:
        """Compute the shift of some rows of finite logits [K,n,w]; None where it is always 0."""
        if not self.detector.trained:
            return None
        stride = stride_of(logits[None])
        cells = np.ascontiguousarray(logits.numpy()[:, ::stride, ::stride])
        weights = Weights(*(getattr(self.detector, name).numpy() for name in Weights._fields))
        change, sums = compute_shift(cells, np.float32(self.beta.item()), weights)
        return LogOddsShift(change, sums, stride, self._score_of)

    def _score_of(self, statistics: np.ndarray) -> float:
        """Compute the score of one image's statistics [2+K]."""
        return float(self.score(torch.from_numpy(statistics)[None].float()))

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Fit temperature, detector and in-distribution score; needs labels of two classes.

        Three quarters of the images train the detector, the others stop its training. Without a
        mispredicted pixel the detector stays untrained. One image serves as both parts.
        """
        require_two_classes(count_classes(data))
        train, held_out = split(data, TRAIN_FRACTION, context.seed)
        self.beta.fill_(fit_inverse_temperature_if_better(data, context))
        trained, stopping = (self._sample(data, part, context) for part in (train, held_out))
        self.detector.fit(trained[0], stopping[0], context)
        self.score.fit(torch.cat([trained[1], stopping[1]]))

    def _sample(
        self, data: ValidationSet, indices: list[int], context: FitContext
    ) -> tuple[PixelSample, Tensor]:
        """Draw pixels of some images; compute the images' statistics [n,2+K]."""
        generator = torch.Generator().manual_seed(context.seed)
        samples, statistics = [], []
        for done, index in enumerate(indices):
            context.progress("reading", done / len(indices))
            image = data[index]
            logits = finite_logits(image.logits[None])
            stride = stride_of(logits)
            features = self.features((subsampled(logits, stride) * self.beta).log_softmax(dim=1))
            statistics.append(image_statistics(features, self.num_classes))
            samples.append(sample_pixels(features, subsampled(image.labels, stride), generator))
        return PixelSample.joined(samples), torch.cat(statistics)

    def features(self, logs: Tensor) -> Features:
        """Compute what the detector reads of log-probabilities [N,K,...]."""
        return compute_features(logs)

    def summary(self) -> dict[str, float]:
        """Return the temperature and whether the detector is in use."""
        return {"temperature": 1 / self.beta.item(), "detector": float(self.detector.trained)}
