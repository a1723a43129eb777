"""What selectors would change of the log-odds, gathered part by part until an image is whole.

How far such changes are trusted depends on the image as a whole, of which a strip tells little:
the sky alone is like no image that was fitted on.

What every calibrator is: one torch module, fitted, saved, served and exported as it stands.

Logits have the class axis second: [N,K,h,w] for maps, [M,K] for a table of pixels. Calibrators
act on each pixel by itself unless they declare themselves spatial.

What calibrators share that treat each pixel by itself, as one row of K logits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.calibration.dataset import ValidationSet

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LogOddsShift:
    """Changes float32 [S,n,m] at the cells looked at, every `step` rows and columns of a grid.

    There is one for each of S opinions.

    `sums` float32 [n,F] are of the features that led to them, over each row. `combine` is how the
    calibrator turns both, once they are of a whole grid, into what is added to the log-odds, [n,m].
    """

    change: Floats
    sums: Floats
    step: int
    combine: Callable[[Floats, Floats], Floats]

    def within(self, top: int, cells: range) -> "LogOddsShift":
        """Keep what lies in some rows of the grid, where the first row at hand is its row `top`."""
        first = -(-(cells.start - top) // self.step)
        end = -(-(cells.stop - top) // self.step)
        return replace(self, change=self.change[:, first:end], sums=self.sums[first:end])

    @staticmethod
    def joined(parts: Sequence["LogOddsShift"]) -> "LogOddsShift":
        """Put parts together, from top to bottom."""
        if len(parts) == 1:
            return parts[0]
        change = np.concatenate([part.change for part in parts], axis=1)
        return replace(parts[0], change=change, sums=np.concatenate([p.sums for p in parts]))

    def combined(self) -> Floats:
        """Give what is added to the log-odds at the cells of a grid of which these are all."""
        return self.combine(self.change, self.sums)


LOGIT_LIMIT = 3e4  # beyond it differences of logits overflow; algorithms: clamp, then log-softmax
TEMPERATURE_RANGE = (0.05, 1e4)

# Calls work(start, stop) until all of some rows are done, by whatever threads there are; the
# last number is what a row costs.
MapRows = Callable[[Callable[[int, int], None], range, int], None]


def map_rows_serially(work: Callable[[int, int], None], rows: range, _per_row: int) -> None:
    """Share with nobody."""
    work(rows.start, rows.stop)


@dataclass(frozen=True)
class Invariances:
    """What a calibrator promises, whatever it was fitted on; tests hold every one to it."""

    translation: bool  # adding a constant to a pixel's logits changes nothing
    argmax: bool  # the most probable class stays
    order: bool  # the classes' order stays
    receptive_radius: int = (
        0  # how many rows and columns away the neighbours lie that a pixel's answer reads
    )

    @property
    def spatial(self) -> bool:
        """Whether neighbours are read at all, where there are any."""
        return self.receptive_radius > 0


def ignore_progress(_stage: str, _share: float) -> None:
    """Take no notice of progress."""


@dataclass(frozen=True)
class FitContext:
    """What a fit is given beside its data.

    `progress(stage, share)` is called often, with a share in 0..1; to cancel, raise from it.
    """

    seed: int = 0
    progress: Callable[[str, float], None] = ignore_progress


class Calibrator(nn.Module, ABC):
    """Maps logits to calibrated log-probabilities.

    Fresh from its constructor a calibrator is the identity. Its state is floating tensors only,
    so that safetensors holds it.
    """

    method: ClassVar[str]
    invariances: ClassVar[Invariances]
    needs_image: bool = False  # whether it must be shown one before it answers
    needs_maps: ClassVar[bool] = False  # whether a table of pixels will not do
    image: Tensor | None = None  # uint8 RGB [3,h,w] on the grid of the logits

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] of any float type to log-probabilities, float32 of the same shape.

        NaN logits give the uniform distribution; infinite ones are clamped.
        """

    @abstractmethod
    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Set the state from labelled logits; unlabelled pixels take no part.

        Raises ArgumentError where the set can't determine the state.
        """

    def with_image(self, image: Tensor | None) -> Self:
        """Show one image, uint8 RGB [3,h,w] on the grid of its logits.

        Gives a calibrator of the same state that has it before it. Most look at no image, and
        stay what they are.
        """
        if not self.needs_image:
            return self
        seen = copy(self)
        seen.image = image
        return seen

    def scale(self) -> float | None:
        """Give what multiplies all logits, above 0, where nothing but a shift is done besides."""
        return None

    def log_odds_shift(
        self,
        logits: Tensor,  # noqa: ARG002
        map_rows: MapRows = map_rows_serially,  # noqa: ARG002
        top: int = 0,  # noqa: ARG002
        height: int | None = None,  # noqa: ARG002
    ) -> LogOddsShift | None:
        """Give what a part of an image says on the log-odds of scaled logits' top class, or None.

        Finite float32 logits [K,n,w], whose first row is row `top`, aligned, of a grid of `height`
        rows; by default they are all of it. `map_rows` lends threads.
        """
        return None

    def predict_errors(self, logits: Tensor) -> Tensor | None:  # noqa: ARG002
        """Mark what a selector takes for mispredicted: logits [N,K,...] to bool [N,...], or None.

        None comes from calibrators without a selector.
        """
        return None

    def summary(self) -> dict[str, float]:
        """Name the few numbers of the state that a person wants to see."""
        return {}


def finite_logits(logits: Tensor) -> Tensor:
    """Logits as finite float32: infinities clamped to +-3e4, pixels with a NaN set to zero."""
    logits = logits.float()
    broken = torch.isnan(logits).any(dim=1, keepdim=True)
    return torch.where(broken, 0.0, logits).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


FEATURE_FLOOR = -30.0  # below it a log-probability says nothing more, but would rule every fit
PART = 256  # pixels whose products are added up in float32


class Pixelwise(Calibrator):
    """A calibrator that maps rows of logits to rows of log-probabilities."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] of any float type to log-probabilities, float32 of the same shape."""
        calibrated = self.calibrate_rows(finite_logits(logits).movedim(1, -1)).movedim(-1, 1)
        return uniform_where_broken(calibrated, logits)

    @abstractmethod
    def calibrate_rows(self, rows: Tensor) -> Tensor:
        """Finite float32 logits [...,K] to log-probabilities [...,K]."""


def uniform_where_broken(calibrated: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities [N,K,...] with 1/K at the pixels whose logits hold a NaN.

    `finite_logits` makes such logits zero, which an affine map's bias would turn into an opinion.
    """
    broken = torch.isnan(logits).any(dim=1, keepdim=True)
    return torch.where(broken, -torch.log(torch.tensor(float(logits.shape[1]))), calibrated)


def floored_log_softmax(rows: Tensor) -> Tensor:
    """Logits [...,K] to log-probabilities [...,K] in [-30, 0]."""
    # Along the first axis, in which rows of maps lie, it is some twenty times as fast.
    return rows.movedim(-1, 0).log_softmax(dim=0).clamp_min(FEATURE_FLOOR).movedim(0, -1)


def with_one(features: Tensor) -> Tensor:
    """Features [...,D] with a last column of ones, which the bias multiplies."""
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def summed_products(left: Tensor, right: Tensor) -> Tensor:
    """Sum products over pixels: float32 [m,R] and [m,D] to float64 [R,D].

    In parts, because some processors' matrix product adds a column up term by term in float32:
    thousands of neighbours with one label then cost the digits in which a fit's end shows.
    """
    count = len(left) // PART
    whole = count * PART
    of_left, of_right = (rows[:whole].view(count, PART, rows.shape[1]) for rows in (left, right))
    parts = (of_left.mT @ of_right).sum(dim=0, dtype=torch.float64)
    return parts + left[whole:].T @ right[whole:]
