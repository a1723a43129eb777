"""A few small networks that say, pixel by pixel, with what probability a label is right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from app.calibration.base import FitContext, finite_logits
from app.calibration.dataset import IGNORE, LabelledImage, labelled_pixels
from app.calibration.methods.contextual.features import Context, context_of
from app.calibration.methods.contextual.kernels import Weights
from app.calibration.solvers import Schedule, descend

MEMBERS, WIDTH = 2, 16  # the width is even: the kernel works out two units at a time
BATCH_PIXELS = 2048
FEWEST_STEPS = 32  # a round


@dataclass(frozen=True)
class PixelSample:
    """Pixels drawn from images, with what surrounds them."""

    features: Tensor  # float32 [M,F]
    odds: Tensor  # float32 [M], the network's own
    first: Tensor  # int64 [M], the most probable class
    second: Tensor  # int64 [M]
    correct: Tensor  # float32 [M], 1 where the most probable class is the label
    image: Tensor  # int64 [M], numbers the image

    @classmethod
    def joined(cls, parts: Sequence["PixelSample"]) -> "PixelSample":
        """Put several draws into one."""
        columns = zip(*(part.columns() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def columns(self) -> tuple[Tensor, ...]:
        """Give all fields in order."""
        return (self.features, self.odds, self.first, self.second, self.correct, self.image)

    def chosen(self, places: Tensor) -> "PixelSample":
        """Keep some rows."""
        return PixelSample(*(column[places] for column in self.columns()))

    def by_image(self, values: Tensor) -> NDArray[np.float64]:
        """Mean of [M] values over each image that has rows."""
        count = torch.bincount(self.image)
        total = torch.bincount(self.image, values.double())
        return (total[count > 0] / count[count > 0]).numpy()


def subsampled_image(image: LabelledImage, stride: int) -> LabelledImage:
    """Keep the cells of an image that are looked at.

    Serving begins at the first row and column. Where fewer than half as many labels lie there as
    on cells that begin elsewhere, as sparse labels may, those are taken to learn from.
    """
    if stride == 1:
        return image
    parts = [
        LabelledImage(
            image.logits[:, row::stride, column::stride], image.labels[row::stride, column::stride]
        )
        for row, column in product(range(stride), repeat=2)
    ]
    counts = [int((part.labels != IGNORE).sum()) for part in parts]
    best = int(np.argmax(counts))
    return parts[best if 2 * counts[0] < counts[best] else 0]


def read_context(
    image: LabelledImage, beta: Tensor, local: Tensor, position_prior: Tensor
) -> Context:
    """Read an image at a temperature; raises ArgumentError for NaN at a labelled pixel."""
    labelled_pixels(image)
    return context_of(
        (finite_logits(image.logits[None]) * beta).log_softmax(dim=1), local, position_prior
    )


def sample_pixels(
    seen: Context,
    labels: Tensor,
    quota: int,
    number: int,
    generator: torch.Generator,
    *,
    placed: bool,
) -> PixelSample:
    """Draw at most `quota` labelled pixels of an image."""
    places = torch.nonzero((labels != IGNORE).flatten())[:, 0]
    places = places[torch.randperm(len(places), generator=generator)[:quota]]
    first = seen.first.flatten()[places]
    return PixelSample(
        features=seen.seen(placed=placed)[0].flatten(1)[:, places].T.contiguous(),
        odds=seen.odds.flatten()[places],
        first=first,
        second=seen.second.flatten()[places],
        correct=(first == labels.flatten()[places]).float(),
        image=torch.full_like(places, number),
    )


class Selectors(nn.Module):
    """Several small networks side by side: features to log-odds that the label is right.

    Each has two hidden layers of 16 and starts at the network's own log-odds.
    """

    def __init__(self, num_classes: int, features: int) -> None:
        super().__init__()
        hidden = MEMBERS * WIDTH

        def held(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.inward = held(features, hidden)
        self.first = held(num_classes, hidden)
        self.second = held(num_classes, hidden)
        self.between = held(MEMBERS, WIDTH, WIDTH)
        self.bias = held(MEMBERS, WIDTH)
        self.outward = held(MEMBERS, WIDTH)
        self.offset = held(MEMBERS)

    mean: Tensor
    scale: Tensor

    def forward(self, features: Tensor, odds: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Rows [M,F], own log-odds [M], classes [M] twice, to each member's log-odds [M,2]."""
        seen = ((features - self.mean) * self.scale).clamp(-4, 4)
        hidden = relu(seen @ self.inward + self.first[first] + self.second[second])
        grouped = hidden.reshape(-1, MEMBERS, WIDTH).transpose(0, 1)
        deeper = relu(grouped @ self.between + self.bias[:, None])
        change = (deeper * self.outward[:, None]).sum(dim=-1).transpose(0, 1)
        return odds[:, None] + change + self.offset

    def weights(self) -> Weights:
        """Give the state as arrays, for the kernel that serves."""
        return Weights(*(getattr(self, name).numpy() for name in Weights._fields))

    def train_on(
        self, trained: PixelSample, held: PixelSample, context: FitContext, schedule: Schedule
    ) -> None:
        """Fit by likelihood of right and wrong, and stop when held-out images say so."""
        self._begin(trained.features, context.seed)
        generator = torch.Generator().manual_seed(context.seed)
        batch = min(max(len(trained.odds) // FEWEST_STEPS, 64), BATCH_PIXELS)

        def loss(rows: PixelSample) -> Tensor:
            right = rows.correct[:, None].expand(-1, MEMBERS)
            odds = self(rows.features, rows.odds, rows.first, rows.second)
            return binary_cross_entropy_with_logits(odds, right)

        def batches() -> Iterator[Tensor]:
            order = torch.randperm(len(trained.odds), generator=generator)
            for chosen in torch.split(order, batch):
                yield loss(trained.chosen(chosen))

        def held_out_loss() -> float:
            with torch.no_grad():
                return loss(held).item()

        self.requires_grad_(True)
        try:
            descend(self, batches, held_out_loss, context, schedule)
        finally:
            self.requires_grad_(False)

    def _begin(self, features: Tensor, seed: int) -> None:
        """Take the features' scale, and random weights where symmetry must break."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.mean.copy_(features.mean(dim=0))
            self.scale.copy_(1 / features.std(dim=0).clamp_min(1e-6))
            self.scale[features.std(dim=0) < 1e-6] = 0.0
            for parameter in self.parameters():
                parameter.zero_()
            self.inward.normal_(0, (2 / len(self.inward)) ** 0.5, generator=generator)
            self.first.normal_(0, 0.1, generator=generator)
            self.second.normal_(0, 0.1, generator=generator)
            self.between.normal_(0, (2 / WIDTH) ** 0.5, generator=generator)
