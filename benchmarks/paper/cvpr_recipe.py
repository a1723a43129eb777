"""Selective scaling by the recipe of its authors' code (Wang et al., CVPR 2023).

The project's `selective` differs: it stops training on held-out images, drops the near-identity
first layer, weighs both temperatures by the selector's probability, and fits them.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from app.calibration.base import Calibrator, FitContext, Invariances, finite_logits
from app.calibration.dataset import ValidationSet, labelled_pixels

IMAGES_PER_BATCH, EPOCHS = 20, 40
RATE, WEIGHT_DECAY = 1e-3, 1e-6
MISPREDICTED_TEMPERATURE = 2.0  # that of a selector of moderate accuracy; correct pixels have 1
FLOOR = 1e-16  # added to probabilities before the logarithm
MISPREDICTION_WEIGHT = 2.0  # one more copy of each mispredicted pixel


class CvprSelective(Calibrator):
    """softmax(z/2) where the selector predicts a misprediction, softmax(z) elsewhere."""

    method: ClassVar[str] = "selective, CVPR recipe"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.network = selector(num_classes)

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [N,K,...] to log-probabilities."""
        logits = finite_logits(logits)
        flat = logits.movedim(1, -1)
        outputs = self.network(features(flat.flatten(0, -2)))
        correct = (outputs[:, 1] >= outputs[:, 0]).view(flat.shape[:-1])[:, None]
        temperature = torch.where(correct, 1.0, MISPREDICTED_TEMPERATURE)
        return (logits / temperature).log_softmax(dim=1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train the selector for 40 epochs on batches of the pixels of 20 images."""
        torch.manual_seed(context.seed)
        self.network = selector(self.num_classes)
        optimiser = torch.optim.AdamW(self.network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        images = [labelled_pixels(data[index]) for index in range(len(data))]
        weights = torch.tensor([MISPREDICTION_WEIGHT, 1.0])
        self.network.train()
        for _ in range(EPOCHS):
            for chosen in torch.split(torch.randperm(len(images)), IMAGES_PER_BATCH):
                logits = torch.cat([images[index][0] for index in chosen.tolist()])
                labels = torch.cat([images[index][1] for index in chosen.tolist()])
                correct = (logits.argmax(dim=1) == labels).long()
                loss = cross_entropy(self.network(features(logits)), correct, weights)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        self.network.eval().requires_grad_(False)


def features(logits: Tensor) -> Tensor:
    """Compute log(softmax + 1e-16) of logits [M,K]."""
    return (logits.softmax(dim=1) + FLOOR).log()


def selector(num_classes: int) -> nn.Sequential:
    """Return the selector's network; its first layer is the identity at the start."""
    first = nn.Linear(num_classes, num_classes)
    nn.init.eye_(first.weight)
    nn.init.zeros_(first.bias)
    return nn.Sequential(
        first, nn.BatchNorm1d(num_classes), nn.ReLU(),
        nn.Linear(num_classes, 2 * num_classes), nn.BatchNorm1d(2 * num_classes), nn.ReLU(),
        nn.Linear(2 * num_classes, num_classes), nn.BatchNorm1d(num_classes), nn.ReLU(),
        nn.Linear(num_classes, 2),
    )  # fmt: skip
