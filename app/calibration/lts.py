"""Local temperature scaling (Ding et al. 2021), from logits alone: a temperature for each pixel.

A tree of gates mixes four temperature fields, each a 5x5 convolution of the log-probabilities.
Against the released code: the temperature is 1 at the start (it was 2, one added twice), gates
start at random (equal branches never part, which makes the tree one linear convolution), and
softplus stands for a ReLU that can die at 1e-8. Borders repeat the edge, so maps of any size do.
The image-dependent form needs the picture, which a calibrator is not given.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import conv2d, nll_loss, pad, softplus

from app.calibration.base import Calibrator, FitContext, Invariances, prepared
from app.calibration.optimisation import Schedule, descend
from app.calibration.pixelwise import floored_log_softmax, uniform_where_broken
from app.calibration.sampling import count_classes, require_two_classes
from app.calibration.validation import IGNORE, ValidationSet, labelled_pixels, split
from app.errors import ArgumentError

KERNEL, DILATION = 5, 2
REACH = DILATION * (KERNEL // 2)
SMALLEST_TEMPERATURE = 0.05
BRANCHES, GATES = 4, 3
CROP = 128  # pixels a side, so that one step is bounded whatever the image
SCHEDULE = Schedule("training", rate=2e-3, rounds=30, patience=4)
HELD_OUT_CROPS = 64


class LocalTemperature(Calibrator):
    """softmax(z / T(z)), T above 0.05 from a 9x9 neighbourhood; needs maps [N,K,h,w]."""

    method: ClassVar[str] = "lts"
    invariances: ClassVar[Invariances] = Invariances(
        translation=True, argmax=True, order=True, reach=REACH
    )
    weight: Tensor
    bias: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        fields = BRANCHES + GATES
        self.weight = Parameter(
            torch.zeros(fields, num_classes, KERNEL, KERNEL), requires_grad=False
        )
        self.bias = Parameter(_fresh_bias(), requires_grad=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,h,w] to log-probabilities; raises ArgumentError for tables."""
        if logits.ndim != 4:
            raise ArgumentError(f"expected maps [N,K,h,w], got {list(logits.shape)}")
        rows = prepared(logits)
        calibrated = (rows / self.temperatures(rows)).log_softmax(dim=1)
        return uniform_where_broken(calibrated, logits)

    def temperatures(self, logits: Tensor) -> Tensor:
        """Finite logits [N,K,h,w] to temperatures [N,1,h,w]."""
        features = floored_log_softmax(logits.movedim(1, -1)).movedim(-1, 1)
        padded = pad(features, (REACH,) * 4, mode="replicate")
        fields = conv2d(padded, self.weight, self.bias, dilation=DILATION)
        first, second, third, fourth = (fields[:, [place]] for place in range(BRANCHES))
        gate1, gate2, gate3 = (fields[:, [BRANCHES + gate]].sigmoid() for gate in range(GATES))
        one = gate1 * first + (1 - gate1) * second
        other = gate2 * third + (1 - gate2) * fourth
        return softplus(gate3 * one + (1 - gate3) * other) + SMALLEST_TEMPERATURE

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train by Adam on crops, stopping early on held-out images; needs two classes.

        The loss skips unlabelled pixels, but they are part of their neighbours' surroundings, as
        they are when serving. Raises ArgumentError for sets of tables.
        """
        require_two_classes(count_classes(data))
        if data[0].labels.ndim != 2:
            raise ArgumentError("expected images with a grid of two dimensions, got tables")
        both = [list(range(len(data)))] * 2
        train, select = split(data, 0.8, context.seed) if len(data) > 1 else both
        generator = torch.Generator().manual_seed(context.seed)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[BRANCHES:].normal_(0, 0.01, generator=generator)
            self.bias.copy_(_fresh_bias())

        def batches() -> Iterator[Tensor]:
            for place in torch.randperm(len(train), generator=generator).tolist():
                logits, labels = _crop(data, train[place], generator)
                if (labels != IGNORE).any():
                    yield self._loss(logits, labels)

        def held_out_loss() -> float:
            fixed = torch.Generator().manual_seed(context.seed)
            crops = (_crop(data, index, fixed) for index in select[:HELD_OUT_CROPS])
            with torch.no_grad():
                losses = [self._loss(*crop).item() for crop in crops if (crop[1] != IGNORE).any()]
            return sum(losses) / max(len(losses), 1)

        self.requires_grad_(True)
        try:
            descend(self, batches, held_out_loss, context, SCHEDULE)
        finally:
            self.requires_grad_(False)

    def summary(self) -> dict[str, float]:
        """Give the temperature that an undecided neighbourhood gets."""
        undecided = torch.zeros(1, self.num_classes, 1, 1)
        with torch.no_grad():
            return {"temperature_where_undecided": self.temperatures(undecided).item()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nll_loss(self(logits[None]), labels[None], ignore_index=IGNORE)


def _fresh_bias() -> Tensor:
    """Biases at which every branch says temperature 1 and every gate is open halfway."""
    bias = torch.zeros(BRANCHES + GATES)
    bias[:BRANCHES] = torch.tensor(1 - SMALLEST_TEMPERATURE).expm1().log()
    return bias


def _crop(data: ValidationSet, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut at most 128x128 pixels from an image; its labelled logits must be finite."""
    image = data[index]
    labelled_pixels(image)
    height, width = image.labels.shape
    top = int(torch.randint(max(height - CROP, 0) + 1, (), generator=generator))
    left = int(torch.randint(max(width - CROP, 0) + 1, (), generator=generator))
    window = (slice(top, top + CROP), slice(left, left + CROP))
    return image.logits[:, window[0], window[1]], image.labels[window]
