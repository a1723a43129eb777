"""Local temperature scaling (Ding et al. 2021): a temperature for each pixel.

A tree of gates mixes four temperature maps, each a 5x5 convolution of the log-probabilities;
`lts_image` mixes in a fifth, a convolution of the image, by one more gate.
Differences from the released code: the initial temperature is 1 (there 2, since 1 is added twice),
the gates are initialised at random (equal branches get equal gradients, which makes the tree one
linear convolution), and softplus replaces a ReLU that can die at 1e-8. Borders are padded by
replication, so maps of any size are possible.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import conv2d, nll_loss, pad, softplus

from app.calibration.base import (
    Calibrator,
    FitContext,
    Invariances,
    finite_logits,
    floored_log_softmax,
    uniform_where_broken,
)
from app.calibration.dataset import IGNORE, LabelledImage, ValidationSet, labelled_pixels
from app.calibration.sampling import count_classes, require_two_classes
from app.calibration.solvers import Schedule, descend
from app.calibration.splits import split
from app.errors import ArgumentError

KERNEL, DILATION = 5, 2
RECEPTIVE_RADIUS = DILATION * (KERNEL // 2)
SMALLEST_TEMPERATURE = 0.05
BRANCHES, GATES = 4, 3
GREY, CONTRAST = 0.5, 4.0  # colours in 0..1 are mapped to -2..2
GATE_SPREAD = 0.01
CROP = 128  # pixels a side, so that the cost of a step does not depend on the image size
SCHEDULE = Schedule("training", rate=2e-3, rounds=30, patience=4)
HELD_OUT_CROPS = 64


class LocalTemperature(Calibrator):
    """softmax(z / T(z)), T > 0.05 from a 9x9 neighbourhood; needs maps [N,K,h,w]."""

    method: ClassVar[str] = "lts"
    invariances: ClassVar[Invariances] = Invariances(
        translation=True, argmax=True, order=True, receptive_radius=RECEPTIVE_RADIUS
    )
    needs_maps: ClassVar[bool] = True
    weight: Tensor
    bias: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        fields = BRANCHES + GATES
        self.weight = Parameter(
            torch.zeros(fields, num_classes, KERNEL, KERNEL), requires_grad=False
        )
        self.bias = Parameter(_initial_bias(), requires_grad=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,h,w] to log-probabilities; raises ArgumentError for tables."""
        if logits.ndim != 4:
            raise ArgumentError(f"expected maps [N,K,h,w], got {list(logits.shape)}")
        rows = finite_logits(logits)
        calibrated = (rows / self.temperatures(rows)).log_softmax(dim=1)
        return uniform_where_broken(calibrated, logits)

    def temperatures(self, logits: Tensor) -> Tensor:
        """Compute temperatures [N,1,h,w] from finite logits [N,K,h,w]."""
        features = floored_log_softmax(logits.movedim(1, -1)).movedim(-1, 1)
        return softplus(self._fields(features)) + SMALLEST_TEMPERATURE

    def _fields(self, features: Tensor) -> Tensor:
        """Compute the inputs of softplus, [N,1,h,w], from log-probabilities [N,K,h,w]."""
        fields = convolved(features, self.weight, self.bias)
        first, second, third, fourth = (fields[:, [place]] for place in range(BRANCHES))
        gate1, gate2, gate3 = (fields[:, [BRANCHES + gate]].sigmoid() for gate in range(GATES))
        one = gate1 * first + (1 - gate1) * second
        other = gate2 * third + (1 - gate2) * fourth
        return gate3 * one + (1 - gate3) * other

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train by Adam on crops, with early stopping on held-out images.

        Unlabelled pixels have no loss, but are part of their neighbours' receptive fields, as they
        are when serving. Raises ArgumentError where fewer than two classes are labelled, and for
        sets of tables.
        """
        require_two_classes(count_classes(data))
        if data[0].labels.ndim != 2:
            raise ArgumentError("expected images with a grid of two dimensions, got tables")
        train, select = split(data, 0.8, context.seed)
        generator = torch.Generator().manual_seed(context.seed)
        with torch.no_grad():
            self._begin(generator)

        def batches() -> Iterator[Tensor]:
            for place in torch.randperm(len(train), generator=generator).tolist():
                crop = _crop(data, train[place], generator)
                if (crop.labels != IGNORE).any():
                    yield self._loss(crop)

        def held_out_loss() -> float:
            fixed = torch.Generator().manual_seed(context.seed)
            crops = (_crop(data, index, fixed) for index in select[:HELD_OUT_CROPS])
            with torch.no_grad():
                labelled = (crop for crop in crops if (crop.labels != IGNORE).any())
                losses = [self._loss(crop).item() for crop in labelled]
            return sum(losses) / max(len(losses), 1)

        self.requires_grad_(True)
        try:
            descend(self, batches, held_out_loss, context, SCHEDULE)
        finally:
            self.requires_grad_(False)

    def summary(self) -> dict[str, float]:
        """Return the temperature where all classes are equally probable."""
        undecided = torch.zeros(1, self.num_classes, 1, 1)
        with torch.no_grad():
            return {"temperature_where_undecided": self.temperatures(undecided).item()}

    def _begin(self, generator: torch.Generator) -> None:
        """Initialise the temperature at 1 and the gates at random."""
        self.weight.zero_()
        self.weight[BRANCHES:].normal_(0, GATE_SPREAD, generator=generator)
        self.bias.copy_(_initial_bias())

    def _loss(self, crop: LabelledImage) -> Tensor:
        logs = self.with_image(crop.image)(crop.logits[None])
        return nll_loss(logs, crop.labels[None], ignore_index=IGNORE)


class ImageTemperature(LocalTemperature):
    """softmax(z / T(z, image)): the image-dependent form.

    `forward` raises ArgumentError without the image, see `with_image`.
    """

    method: ClassVar[str] = "lts_image"
    needs_image = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.weight_image = Parameter(torch.zeros(1, 3, KERNEL, KERNEL), requires_grad=False)
        self.bias_image = Parameter(_initial_bias()[:1], requires_grad=False)
        self.weight_gate = Parameter(
            torch.zeros(1, num_classes, KERNEL, KERNEL), requires_grad=False
        )
        self.bias_gate = Parameter(torch.zeros(1), requires_grad=False)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train as `LocalTemperature` does; raises ArgumentError for sets without images."""
        if len(data) and data[0].image is None:
            raise ArgumentError(f"expected images with {self.method}, got logits alone")
        super().fit(data, context)

    def summary(self) -> dict[str, float]:
        """Return the temperature of a grey image where all classes are equally probable."""
        with_grey = self.with_image(torch.full((3, 1, 1), round(255 * GREY)))
        return super(ImageTemperature, with_grey).summary()

    def _begin(self, generator: torch.Generator) -> None:
        super()._begin(generator)
        self.weight_image.zero_()
        self.bias_image.copy_(_initial_bias()[:1])
        self.weight_gate.normal_(0, GATE_SPREAD, generator=generator)
        self.bias_gate.zero_()

    def _fields(self, features: Tensor) -> Tensor:
        if self.image is None or self.image.shape[1:] != features.shape[2:]:
            raise ArgumentError(
                f"expected the image on the logits' grid {list(features.shape[2:])}, "
                f"got {None if self.image is None else list(self.image.shape[1:])}"
            )
        colours = (self.image[None].to(features) / 255 - GREY) * CONTRAST
        image_field = convolved(colours, self.weight_image, self.bias_image)
        gate = convolved(features, self.weight_gate, self.bias_gate).sigmoid()
        return gate * super()._fields(features) + (1 - gate) * image_field


def convolved(planes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve [N,C,h,w] with 5x5 kernels of dilation 2; borders are replicated."""
    return conv2d(
        pad(planes, (RECEPTIVE_RADIUS,) * 4, mode="replicate"), weight, bias, dilation=DILATION
    )


def _initial_bias() -> Tensor:
    """Return biases [7] at which each branch gives temperature 1 and each gate 1/2."""
    bias = torch.zeros(BRANCHES + GATES)
    bias[:BRANCHES] = torch.tensor(1 - SMALLEST_TEMPERATURE).expm1().log()
    return bias


def _crop(data: ValidationSet, index: int, generator: torch.Generator) -> LabelledImage:
    """Crop at most 128x128 pixels at random; raises ArgumentError for broken labelled logits."""
    image = data[index]
    labelled_pixels(image)
    height, width = image.labels.shape
    top = int(torch.randint(max(height - CROP, 0) + 1, (), generator=generator))
    left = int(torch.randint(max(width - CROP, 0) + 1, (), generator=generator))
    window = (..., slice(top, top + CROP), slice(left, left + CROP))
    cells = None if image.image is None else image.image[window]
    return LabelledImage(image.logits[window], image.labels[window], cells)
