"""Contextual scaling (ours): each pixel gets the temperature that makes its confidence believed.

A few small networks read a pixel's log-probabilities, its two leading classes and its
neighbourhood, and say with what probability its label is right; the mean of their log-odds is
the selector's opinion. The pixel's confidence becomes

    odds = (1 - trust) own + trust selector's,    in log-odds,

own being the network's after temperature scaling, and the pixel's temperature the one at which the
top probability is just that: neither the label nor the order of the classes changes.

Of a fine grid every second or third row and column is looked at, as the fit's first image has it,
and opinions are interpolated.

An image unlike those of the fit is no reason to be surer: its log-odds are lowered by a fifth at
most, and never raised. Where the fit's images come with copies under other weather, there is a
second opinion for it, which has learned from those too and knows where on images each class
lies. That is told less and less as an image is unlike the copies as well; then it lowers only. And
it is asked only as far as the image itself looks unlike the fit's, in contrast and sharpness:
another street at another hour is no spoiled image.
Selectors alone (Wang et al. 2023 route by one) gain most on images like those of the fit and lose
most elsewhere.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import (
    Calibrator,
    FitContext,
    Floats,
    Invariances,
    LogOddsShift,
    MapRows,
    finite_logits,
    map_rows_serially,
    uniform_where_broken,
)
from app.calibration.dataset import LabelledImage, ValidationSet, augmented_images
from app.calibration.methods.contextual.combine import combine_shifts
from app.calibration.methods.contextual.detector import Detector
from app.calibration.methods.contextual.features import (
    COARSEST,
    FARTHEST,
    Context,
    context_of,
    interpolated,
    log_odds,
    stride_of,
    subsampled,
)
from app.calibration.methods.contextual.image_statistics import (
    LEAST_STD,
    LEAST_THRESHOLD,
    NUM_STATISTICS,
    SUMS,
    compute_statistics,
    row_statistics,
)
from app.calibration.methods.contextual.in_distribution import InDistributionScore
from app.calibration.methods.contextual.kernels import Network, network_shifts
from app.calibration.methods.contextual.networks import read_context, subsampled_image
from app.calibration.methods.contextual.pixel_temperature import beta_for
from app.calibration.methods.contextual.position_prior import BANDS, bands_of, fit_position_prior
from app.calibration.methods.contextual.training import (
    CLEAN_TRAINING,
    ROBUST_TRAINING,
    image_statistics_of,
    train_detector,
)
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import count_classes, require_two_classes
from app.calibration.splits import split
from app.errors import ArgumentError

TRAIN_FRACTION = 0.75  # of the images; the rest chooses the round of training and sets the trust
MAX_OOD_REDUCTION = np.float32(0.2)  # that unfamiliar images may take from the log-odds
_NO = np.float32(0)


class Contextual(Calibrator):
    """softmax(b z) with the b of each pixel at which the top probability is as believed.

    Works on maps [N,K,h,w] and tables [N,K,...]; what was fitted on tables never looks at a
    neighbourhood. Where a source has copies of its images under other weather
    (`augmented_images`), the selectors learn from those too.
    """

    method: ClassVar[str] = "contextual"
    invariances: ClassVar[Invariances] = Invariances(
        translation=True,
        argmax=True,
        order=True,
        receptive_radius=COARSEST * (FARTHEST + 1)
        - 1,  # of fine grids; the next opinion counts as well
    )
    auto_rank: ClassVar[int | None] = 6
    combines_with_selective: ClassVar[bool] = False
    beta: Tensor
    local: Tensor
    spacing: Tensor
    position_prior: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.detector = Detector(num_classes, placed=False)
        self.robust_detector = Detector(num_classes, placed=True)
        self.image_statistics = InDistributionScore(NUM_STATISTICS, LEAST_STD, LEAST_THRESHOLD)
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("local", torch.ones(()))
        self.register_buffer("spacing", torch.ones(()))
        self.register_buffer("position_prior", torch.zeros(num_classes, BANDS))
        # The same as plain values, since tensors can neither slice nor decide.
        self.stride, self.robust = 1, False
        self.register_load_state_dict_post_hook(Contextual._cache_flags)  # type: ignore[no-untyped-call]

    @classmethod
    def for_warm_up(cls, num_classes: int) -> Self:
        """Return an unfitted calibrator whose detector is switched on, so that its kernels run."""
        calibrator = cls(num_classes)
        calibrator.detector.detector_weight.fill_(1)
        return calibrator

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] to log-probabilities."""
        if logits.ndim == 2:  # a table whose rows are pixels
            return self.forward(logits.T[None])[0].T
        logs = (finite_logits(logits) * self.beta).log_softmax(dim=1)
        detector_log_odds = self.detector_log_odds(logs)
        calibrated = (logs * beta_for(logs, detector_log_odds)).log_softmax(dim=1)
        return uniform_where_broken(calibrated, logits)

    def detector_log_odds(self, logs: Tensor) -> Tensor:
        """Log-probabilities at the temperature [N,K,...] to log-odds [N,1,...] of being right."""
        stride = self.stride_for(logs)
        context = context_of(subsampled(logs, stride), self.local, self.position_prior)
        means = context.seen(placed=True).flatten(2).mean(dim=2)
        log_odds_shift = [detector(context) for detector in self._detectors()]
        image_in_distribution = (
            self.image_in_distribution(self._row_statistics(stride)) if self.needs_image else 0.0
        )
        combined_shift = self.combined_shift(
            log_odds_shift, means, image_in_distribution, [-1, *[1] * (logs.ndim - 1)]
        )
        return log_odds(logs.amax(1, keepdim=True)) + interpolated(
            combined_shift, logs.shape[-2:], stride
        )

    def stride_for(self, planes: Tensor) -> int:
        """Tell how far apart the cells lie that are looked at: as in the fit, if it knew a grid.

        The rows of tables [N,K,m] have no grid, and are all looked at.
        """
        return self.stride if self.stride and planes.ndim == 4 else stride_of(planes)

    def combined_shift(
        self,
        log_odds_shift: Sequence[Tensor],
        means: Tensor,
        image_in_distribution: float,
        shape: Sequence[int],
    ) -> Tensor:
        """What trusted opinions together move the log-odds by.

        `means` [N,F] are images' mean features, `image_in_distribution` says how far the image
        looks like those of the fit, and `shape` makes [N] fit the changes.
        """
        in_distribution = self.detector.in_distribution_score(means).view(shape)
        elsewhere = log_odds_shift[0].clamp(-float(MAX_OOD_REDUCTION), 0.0)
        if self.robust:
            known = self.robust_detector.in_distribution_score(means).view(shape)
            lower = log_odds_shift[1].clamp_max(0)
            corrupted = lower + known * (log_odds_shift[1] - lower)
            elsewhere = corrupted + image_in_distribution * (elsewhere - corrupted)
        total: Tensor = elsewhere + in_distribution * (log_odds_shift[0] - elsewhere)
        return total

    def image_in_distribution(self, row_statistics: Tensor) -> float:
        """Tell how like the fit's an image looks, 0..1, from what `row_statistics` gave of it."""
        return float(self.image_statistics(compute_statistics(row_statistics)[None]))

    def _row_statistics(self, stride: int) -> Tensor:
        """Look along the rows of the image that are looked at: float32 [n,5]."""
        if self.image is None:
            raise ArgumentError(
                "expected the image, which calibrators fitted with corruptions read, got none"
            )
        return row_statistics(self.image[:, ::stride])

    def _detectors(self) -> list[Detector]:
        return [self.detector, self.robust_detector] if self.robust else [self.detector]

    def predict_errors(self, logits: Tensor) -> Tensor | None:
        """Mark the pixels that are believed to be wrong rather than right."""
        if not any(detector.detector_weight for detector in self._detectors()):
            return None
        logs = (finite_logits(logits) * self.beta).log_softmax(dim=1)
        return self.detector_log_odds(logs)[:, 0] < 0

    def scale(self) -> float | None:
        """Give the inverse temperature."""
        return self.beta.item()

    def log_odds_shift(
        self,
        logits: Tensor,
        map_rows: MapRows = map_rows_serially,
        top: int = 0,
        height: int | None = None,
    ) -> LogOddsShift | None:
        """Ask the networks about finite logits [K,n,w]."""
        if not any(detector.detector_weight for detector in self._detectors()):
            return None
        stride = self.stride_for(logits[None])
        cells = np.ascontiguousarray(logits.numpy()[:, ::stride, ::stride])
        begin, count = top // stride, -(-(height or logits.shape[1]) // stride)
        rows = range(begin, begin + cells.shape[1])
        networks = [
            Network(detector.selectors.weights(), self._places(rows, count, detector))
            for detector in self._detectors()
        ]
        change, sums = network_shifts(
            cells, self.beta.item(), networks, self.local.item(), map_rows
        )
        detector_parameters = (
            self.detector.detector_parameters(),
            self.robust_detector.detector_parameters(),
        )
        if not self.needs_image:
            return LogOddsShift(
                change,
                sums,
                stride,
                lambda c, s: combine_shifts(c, s, *detector_parameters, _NO, MAX_OOD_REDUCTION),
            )

        def combined(change: Floats, sums: Floats) -> Floats:
            image_in_distribution = np.float32(
                self.image_in_distribution(torch.from_numpy(sums[:, -SUMS:]))
            )
            of_features = np.ascontiguousarray(sums[:, :-SUMS])  # what was compiled takes no other
            return combine_shifts(
                change, of_features, *detector_parameters, image_in_distribution, MAX_OOD_REDUCTION
            )

        row_statistics = self._row_statistics(stride).numpy()
        return LogOddsShift(
            change, np.concatenate([sums, row_statistics], axis=1), stride, combined
        )

    def _places(self, rows: range, count: int, detector: Detector) -> NDArray[np.float32]:
        """Log-probabilities [n,K] of classes in some of so many rows, if an opinion wants them."""
        if not detector.placed:
            return np.empty((0, self.num_classes), np.float32)
        bands = bands_of(count)[rows.start : rows.stop]
        return self.position_prior.T[bands].contiguous().numpy()

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train on some images, choose the round and set the trust on others; needs two classes.

        The temperature comes first, from all of them. Where no pixel of the training images is
        mispredicted there is nothing else to learn. A set of one image serves as both parts.
        """
        require_two_classes(count_classes(data))
        self.beta.fill_(fit_inverse_temperature(data, context))
        both = (list(range(len(data))),) * 2
        parts = split(data, TRAIN_FRACTION, context.seed) if len(data) > 1 else both
        self.local.fill_(float(data[0].labels.ndim == 2))
        self.spacing.fill_(self.local * stride_of(data[0].logits[None]))
        self._cache_flags()
        self.robust_detector.forget()
        self.image_statistics.forget()
        self.position_prior.zero_()
        train_detector(self.detector, CLEAN_TRAINING, data, parts, self._read, context)
        if augmented_images(data, 0):
            if self.local:
                self.position_prior.copy_(fit_position_prior(data, parts[0]))
            train_detector(self.robust_detector, ROBUST_TRAINING, data, parts, self._read, context)
            statistics = (
                image_statistics_of(data, self.stride or 1, context)
                if self.robust_detector.detector_weight
                else None
            )
            if statistics is not None:
                self.image_statistics.learn(statistics)
        self._cache_flags()

    def summary(self) -> dict[str, float]:
        """Give the temperature, and the opinions' shares in the log-odds."""
        weights = {"detector_weight": self.detector.detector_weight.item()}
        if self.robust:
            weights["trust_elsewhere"] = self.robust_detector.detector_weight.item()
        return {"temperature": 1 / self.beta.item(), **weights}

    def _cache_flags(self, _keys: object = None) -> None:
        self.stride = int(self.spacing.item())
        # An opinion that is trusted with nothing is no reason to be less careful than without.
        self.robust = bool(self.robust_detector.detector_weight)
        self.needs_image = self.robust and self.image_statistics.fitted

    def _read(self, image: LabelledImage) -> tuple[Context, Tensor]:
        """Read an image's cells that are looked at."""
        seen = subsampled_image(image, self.stride_for(image.logits[None]))
        return read_context(seen, self.beta, self.local, self.position_prior), seen.labels
