"""Define the calibrator: one torch module that is fitted, saved, served and exported.

Logits have the class axis second: [N,K,h,w] for maps, [M,K] for a table of pixels. Calibrators
act on each pixel independently unless their invariances say that they are spatial.

`Calibrator` is the interface, `Pixelwise` the base of methods that map one row of K logits to one
row of log-probabilities, and `LogOddsShift` the shift that misclassification detectors add to the
log-odds of an image's confidence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.calibration.dataset import LOGIT_LIMIT, ValidationSet
from app.schemas.fit import TEMPERATURE_RANGE

FEATURE_FLOOR = -30.0  # smaller log-probabilities would dominate a fit as outliers
MAX_LOG_ODDS = 12.0  # of a confidence before a shift: in float32 larger ones give 1
PART = 256  # pixels whose products are summed in float32

Floats = NDArray[np.float32]


def ignore_progress(_stage: str, _fraction: float) -> None:
    """Do nothing with the progress of a fit."""


@dataclass(frozen=True)
class FitContext:
    """Hold the seed of a fit and its progress callback.

    `progress(stage, fraction)` is called often, with a fraction in 0..1; an exception raised from
    it cancels the fit.
    """

    seed: int = 0
    progress: Callable[[str, float], None] = ignore_progress


@dataclass(frozen=True)
class Invariances:
    """List the properties that hold for every fitted state of a calibrator, as tests verify.

    `receptive_radius` is the largest distance, in rows or columns of the grid, of the neighbours
    that a pixel's output depends on.
    """

    translation: bool  # adding a constant to a pixel's logits leaves its probabilities unchanged
    argmax: bool  # the most probable class is that of the logits
    order: bool  # the order of the classes is that of the logits
    receptive_radius: int = 0

    @property
    def spatial(self) -> bool:
        """Return whether the output depends on neighbouring pixels."""
        return self.receptive_radius > 0


@dataclass(frozen=True)
class LogOddsShift:
    """The shift of the log-odds that a detector computes for some rows of an image's grid.

    `shift` is float32 [n,m], at every `stride`-th row and column of the grid; `sums` float32 [n,S]
    are the sums of the image's statistics over each of these rows. How far the shift is applied
    depends on the statistics of the whole image, so the rows of strips are joined first: `score`
    maps mean statistics [S] to the image's in-distribution score in 0..1.
    """

    shift: Floats
    sums: Floats
    stride: int
    score: Callable[[Floats], float]

    def within(self, top: int, cells: range) -> "LogOddsShift":
        """Select the rows `cells` of the grid; `top` is the grid row of the first row held."""
        first = -(-(cells.start - top) // self.stride)
        end = -(-(cells.stop - top) // self.stride)
        return replace(self, shift=self.shift[first:end], sums=self.sums[first:end])

    @staticmethod
    def joined(parts: Sequence["LogOddsShift"]) -> "LogOddsShift":
        """Concatenate the rows of an image's parts, given from top to bottom."""
        if len(parts) == 1:
            return parts[0]
        shift, sums = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("shift", "sums")
        )
        return replace(parts[0], shift=shift, sums=sums)

    def combined(self) -> tuple[Floats, float]:
        """Return the shift [n,m] of a whole grid times the image's score, and the score."""
        score = self.score(self.sums.sum(axis=0, dtype=np.float64) / self.shift.size)
        return self.shift * np.float32(score), score


class Calibrator(nn.Module, ABC):
    """Map logits to calibrated log-probabilities.

    An unfitted calibrator is the plain log-softmax. The state consists of floating-point tensors
    only, so that safetensors can store it. The registry finds every concrete subclass in
    `app.calibration.methods` that sets `method`; subclasses of it inherit the other attributes.
    """

    method: ClassVar[str]  # unique name of a-z, 0-9 and _; it becomes part of version ids
    invariances: ClassVar[Invariances]
    auto_rank: ClassVar[int | None] = None  # position among `auto`'s candidates; None: not tried
    combines_with_selective: ClassVar[bool] = True  # whether `selective+<method>` exists as well
    # The constructor's argument for each option of a fit that the method has, by the option's name.
    options: ClassVar[Mapping[str, str]] = {}
    needs_maps: ClassVar[bool] = False  # whether it needs maps [N,K,h,w] instead of a table [M,K]
    needs_image: bool = False  # whether `with_image` must precede `forward`; a fit may change it
    image: Tensor | None = None  # uint8 RGB [3,h,w], resized to the grid of the logits

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @classmethod
    def required_pixels(cls, num_classes: int) -> int:  # noqa: ARG003
        """Return the count of labelled pixels below which `auto` skips the method; 0 by default.

        A method that fits some parameters on the pixels of one class alone returns their count
        times `num_classes`.
        """
        return 0

    @classmethod
    def for_warm_up(cls, num_classes: int) -> Self | None:  # noqa: ARG003
        """Return a calibrator whose use compiles the method's kernels; None where it has none."""
        return None

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,...] of any float type to log-probabilities, float32 [N,K,...].

        Pixels with a NaN get the uniform distribution; infinite logits are clamped.
        """

    @abstractmethod
    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Fit the state to the labelled pixels of a validation set.

        Raises ArgumentError where the set does not determine the state.
        """

    def with_image(self, image: Tensor | None) -> Self:
        """Return a shallow copy that calibrates the logits of one image.

        `image` is uint8 RGB [3,h,w], resized to the grid of the logits. A calibrator that needs no
        image is returned itself.
        """
        if not self.needs_image:
            return self
        other = copy(self)
        other.image = image
        return other

    def scale(self) -> float | None:
        """Return the factor > 0 of all logits if only `log_odds_shift` changes them further.

        None stands for every other map.
        """
        return None

    def log_odds_shift(
        self,
        logits: Tensor,  # noqa: ARG002
    ) -> LogOddsShift | None:
        """Compute the shift of the top class's log-odds for rows of an image, None without one.

        Finite float32 logits [K,n,w] are rows of a grid, the first a multiple of the stride. The
        log-odds are those of the scaled logits.
        """
        return None

    def shift_of_cells(self, logits: Tensor) -> tuple[Tensor, Tensor, int] | None:  # noqa: ARG002
        """Compute `log_odds_shift` of whole images by torch, for exports; None without one.

        Maps logits [N,K,h,w] to the shift [N,n,m] at every `stride`-th row and column, not yet
        multiplied by the images' scores [N], and returns both with the stride.
        """
        return None

    def predict_errors(self, logits: Tensor) -> Tensor | None:  # noqa: ARG002
        """Predict which pixels are misclassified: logits [N,K,...] to bool [N,...].

        Returns None for calibrators without a misclassification detector.
        """
        return None

    def summary(self) -> dict[str, float]:
        """Return the fitted parameters that a report lists, by name."""
        return {}


class Pixelwise(Calibrator):
    """Map each pixel's row of K logits to a row of K log-probabilities."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,...] of any float type to log-probabilities, float32 [N,K,...]."""
        calibrated = self.calibrate_rows(finite_logits(logits).movedim(1, -1)).movedim(-1, 1)
        return uniform_where_broken(calibrated, logits)

    @abstractmethod
    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Map finite float32 logits [...,K] to log-probabilities [...,K]."""


def clamped_temperature(temperature: float) -> float:
    """Clamp a temperature to [0.05, 1e4]."""
    low, high = TEMPERATURE_RANGE
    return min(max(temperature, low), high)


def finite_logits(logits: Tensor) -> Tensor:
    """Convert logits [N,K,...] to float32 in [-3e4, 3e4]; pixels with a NaN become zero."""
    logits = logits.float()
    broken = torch.isnan(logits).any(dim=1, keepdim=True)
    return torch.where(broken, 0.0, logits).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def uniform_where_broken(calibrated: Tensor, logits: Tensor) -> Tensor:
    """Set log-probabilities [N,K,...] to log(1/K) at the pixels whose logits hold a NaN.

    `finite_logits` makes such logits zero, but an affine map adds its bias to them.
    """
    broken = torch.isnan(logits).any(dim=1, keepdim=True)
    return torch.where(broken, -torch.log(torch.tensor(float(logits.shape[1]))), calibrated)


def floored_log_softmax(rows: Tensor) -> Tensor:
    """Compute log-probabilities [...,K] in [-30, 0] from logits [...,K]."""
    # Along the first axis, which rows of maps are contiguous in, it is about 20 times as fast.
    return rows.movedim(-1, 0).log_softmax(dim=0).clamp_min(FEATURE_FLOOR).movedim(0, -1)


def with_one(features: Tensor) -> Tensor:
    """Append a column of ones to features [...,D], for the bias."""
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def summed_products(left: Tensor, right: Tensor) -> Tensor:
    """Compute left.T @ right from float32 [m,R] and [m,D], in float64 [R,D].

    Parts of 256 pixels are multiplied in float32 and summed in float64, because some processors
    accumulate a matrix product term by term in float32: over thousands of pixels its rounding
    error exceeds the tolerance of the solvers.
    """
    count = len(left) // PART
    whole = count * PART
    of_left, of_right = (rows[:whole].view(count, PART, rows.shape[1]) for rows in (left, right))
    parts = (of_left.mT @ of_right).sum(dim=0, dtype=torch.float64)
    return parts + left[whole:].T @ right[whole:]
