"""The misclassification detector: a small network that predicts whether a label is correct.

Its output layer starts at zero, so that an untrained detector changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE
from app.calibration.methods.contextual.features import NUM_FEATURES, Features
from app.calibration.solvers import Schedule, descend

UNITS = 32
PIXELS_PER_IMAGE = 3000
BATCH_PIXELS = 2048
MIN_STEPS = 32  # in a round
SCHEDULE = Schedule("training the detector", rate=1e-2, rounds=12, patience=12, cooling=True)


@dataclass(frozen=True)
class PixelSample:
    """Pixels of several images: features [M,3], classes int64 [M], correct [M]."""

    values: Tensor
    first: Tensor
    second: Tensor
    correct: Tensor  # float32, 1 where the most probable class is the label

    def __len__(self) -> int:
        return len(self.correct)

    def chosen(self, places: Tensor) -> "PixelSample":
        """Return the pixels at some places."""
        return PixelSample(*(column[places] for column in vars(self).values()))

    @staticmethod
    def joined(parts: list["PixelSample"]) -> "PixelSample":
        """Concatenate the pixels of several images."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return PixelSample(*(torch.cat(column) for column in columns))


def sample_pixels(features: Features, labels: Tensor, generator: torch.Generator) -> PixelSample:
    """Draw at most 3,000 labelled pixels of one image [1,...]; labels int64 [...]."""
    places = torch.nonzero((labels != IGNORE).flatten())[:, 0]
    places = places[torch.randperm(len(places), generator=generator)[:PIXELS_PER_IMAGE]]
    first = features.first.flatten()[places]
    return PixelSample(
        values=features.values[0].flatten(1)[:, places].T.contiguous(),
        first=first,
        second=features.second.flatten()[places],
        correct=(first == labels.flatten()[places]).float(),
    )


class Detector(nn.Module):
    """One hidden layer of 32 units on standardised features and the two leading classes."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("scale", torch.ones(NUM_FEATURES))
        self.inward = parameter(NUM_FEATURES, UNITS)
        self.first = parameter(num_classes, UNITS)
        self.second = parameter(num_classes, UNITS)
        self.outward = parameter(UNITS)
        self.offset = parameter(1)

    @property
    def trained(self) -> bool:
        """True where the detector changes any log-odds."""
        return bool(self.outward.any() or self.offset.any())

    def forward(self, values: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Compute the shift of the log-odds [M] from features [M,3] and classes int64 [M]."""
        standardised = (values - self.mean) * self.scale
        hidden = relu(standardised @ self.inward + self.first[first] + self.second[second])
        return hidden @ self.outward + self.offset

    def on_image(self, features: Features) -> Tensor:
        """Compute the shift of the log-odds [N,...] of images."""
        values = features.values.movedim(1, -1).flatten(0, -2)
        shift: Tensor = self(values, features.first.flatten(), features.second.flatten())
        return shift.view_as(features.log_odds)

    def fit(self, train: PixelSample, held_out: PixelSample, context: FitContext) -> None:
        """Train to predict correctness where not all is correct; keep the best held-out round."""
        with torch.no_grad():
            for weights in self.parameters():
                weights.zero_()
        if len(train) < 2 or train.correct.all() or not len(held_out):
            return
        self._initialise(train.values, context.seed)
        generator = torch.Generator().manual_seed(context.seed)
        batch = min(max(len(train) // MIN_STEPS, 64), BATCH_PIXELS)

        def loss(pixels: PixelSample) -> Tensor:
            odds = pixels.values[:, 0] + self(pixels.values, pixels.first, pixels.second)
            return binary_cross_entropy_with_logits(odds, pixels.correct)

        def batches() -> Iterator[Tensor]:
            for places in torch.split(torch.randperm(len(train), generator=generator), batch):
                yield loss(train.chosen(places))

        def held_out_loss() -> float:
            with torch.no_grad():
                return loss(held_out).item()

        self.requires_grad_(True)
        try:
            descend(self, batches, held_out_loss, context, SCHEDULE)
        finally:
            self.requires_grad_(False)

    def _initialise(self, values: Tensor, seed: int) -> None:
        """Standardise the features and draw the hidden layer's weights; the output stays zero."""
        generator = torch.Generator().manual_seed(seed)
        std = values.std(dim=0, correction=0)
        self.mean.copy_(values.mean(dim=0))
        self.scale.copy_(torch.where(std > 1e-6, 1 / std.clamp_min(1e-6), 0.0))
        with torch.no_grad():
            self.inward.normal_(0, (2 / NUM_FEATURES) ** 0.5, generator=generator)
            self.first.normal_(0, 0.1, generator=generator)
            self.second.normal_(0, 0.1, generator=generator)
