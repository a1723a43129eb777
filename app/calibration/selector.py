"""The selector: which pixels are predicted right, and with what probability (Wang et al. 2023).

A small network on each pixel's log-probabilities: normalise, ReLU, K to 2K, normalise, ReLU, 2K
to K, normalise, ReLU, K to 1. The paper puts a K-to-K layer first, which stays the identity when
trained, and two outputs, of which only the difference counts; both are left out. Batch
normalisation is folded into the layers after training, so the state is plain matrices.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from app.calibration.base import FitContext
from app.calibration.optimisation import Schedule, descend, minimise
from app.calibration.pixelwise import floored_log_softmax
from app.calibration.sampling import Sample

BATCH_PIXELS = 4096
MISPREDICTION_COPIES = 1  # each mispredicted pixel counts 1 + this often in training, as released
SCHEDULE = Schedule("training the selector", rate=3e-3, rounds=30, patience=4)


class Selector(nn.Module):
    """Rows of logits to the log-odds that the top class is right; fresh: 0, even odds.

    `forward` gives log-odds as trained, on mispredictions counted double; `probability` corrects
    for that count.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (num_classes, 2 * num_classes, num_classes, 1)
        self.register_buffer("scale", torch.ones(num_classes))
        self.register_buffer("shift", torch.zeros(num_classes))
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))
        for layer in range(3):
            self.register_buffer(f"weight{layer}", torch.zeros(widths[layer + 1], widths[layer]))
            self.register_buffer(f"bias{layer}", torch.zeros(widths[layer + 1]))

    scale: Tensor
    shift: Tensor
    platt: Tensor
    weight0: Tensor
    bias0: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Logits [...,K] to log-odds [...,1] of a right prediction; above 0 routes to T_ok."""
        hidden = relu(floored_log_softmax(rows) * self.scale + self.shift)
        hidden = relu(linear(hidden, self.weight0, self.bias0))
        hidden = relu(linear(hidden, self.weight1, self.bias1))
        return linear(hidden, self.weight2, self.bias2)

    def calibrated(self, odds: Tensor) -> Tensor:
        """Trained log-odds to log-odds whose sigmoid is P(correct) on held-out pixels."""
        return odds * self.platt[0] + self.platt[1]

    def fit(self, train: Sample, select: Sample, context: FitContext) -> None:
        """Train on one sample; stop early and calibrate the odds on the other."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            network = _network(self.num_classes)
        inputs, correct = _examples(train)
        held_inputs, held_correct = _examples(select)
        _train(network, inputs, correct, (held_inputs, held_correct), context)
        self._fold(network)
        with torch.no_grad():
            odds = self(held_inputs)[:, 0]
        start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        problem = PlattProblem(odds.double(), held_correct.double())
        self.platt.copy_(minimise(problem, start, context, "calibrating the selector")[0])

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return len(self.scale)

    def _fold(self, network: nn.Sequential) -> None:
        """Take over a trained network's layers with the normalisation multiplied in."""
        norms = [module for module in network if isinstance(module, nn.BatchNorm1d)]
        layers = [module for module in network if isinstance(module, nn.Linear)]
        with torch.no_grad():
            scale, shift = _scale_and_shift(norms[0])
            self.scale.copy_(scale)
            self.shift.copy_(shift)
            for place, layer in enumerate(layers):
                weight, bias = layer.weight.detach(), layer.bias.detach()
                if place + 1 < len(norms):
                    scale, shift = _scale_and_shift(norms[place + 1])
                    weight, bias = weight * scale[:, None], bias * scale + shift
                self.get_buffer(f"weight{place}").copy_(weight)
                self.get_buffer(f"bias{place}").copy_(bias)


class PlattProblem:
    """Logistic regression of right (1) on log-odds, two parameters; see `optimisation.Problem`."""

    def __init__(self, odds: Tensor, correct: Tensor) -> None:
        self.features = torch.stack([odds, torch.ones_like(odds)], dim=1)
        self.correct = correct
        likely = odds.sigmoid()
        weighted = self.features * (likely * (1 - likely))[:, None]
        hessian = weighted.T @ self.features / len(odds)
        self.inverse = torch.linalg.inv(hessian + 1e-4 * torch.eye(2, dtype=hessian.dtype))
        self.ridge = 1.0 / len(odds)

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Mean negative log-likelihood [1] with a ridge of one pixel, and its gradient [1,2]."""
        odds = self.features @ point[0]
        difference = point - torch.tensor([1.0, 0.0], dtype=point.dtype)
        value = binary_cross_entropy_with_logits(odds, self.correct)
        gradient = (odds.sigmoid() - self.correct) @ self.features / len(odds)
        ridge = self.ridge * difference.square().sum()
        return (value + ridge)[None], gradient[None] + 2 * self.ridge * difference

    def precondition(self, gradient: Tensor) -> Tensor:
        """Divide by the Hessian at the start."""
        divided: Tensor = gradient @ self.inverse
        return divided


def _network(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(num_classes),
        nn.ReLU(),
        nn.Linear(num_classes, 2 * num_classes),
        nn.BatchNorm1d(2 * num_classes),
        nn.ReLU(),
        nn.Linear(2 * num_classes, num_classes),
        nn.BatchNorm1d(num_classes),
        nn.ReLU(),
        nn.Linear(num_classes, 1),
    )


def _examples(sample: Sample) -> tuple[Tensor, Tensor]:
    """Logits [m,K] and whether the top class is right, float32 [m]."""
    return sample.logits, (sample.logits.argmax(dim=1) == sample.labels).float()


def _train(
    network: nn.Sequential,
    inputs: Tensor,
    correct: Tensor,
    held_out: tuple[Tensor, Tensor],
    context: FitContext,
) -> None:
    generator = torch.Generator().manual_seed(context.seed)

    def loss(rows: Tensor, right: Tensor) -> Tensor:
        weight = 1 + MISPREDICTION_COPIES * (1 - right)
        odds = network(floored_log_softmax(rows))[:, 0]
        total = binary_cross_entropy_with_logits(odds, right, weight, reduction="sum")
        return total / weight.sum()

    def batches() -> Iterator[Tensor]:
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(order), BATCH_PIXELS):
            chosen = order[start : start + BATCH_PIXELS]
            if len(chosen) > 1:  # batch normalisation has no variance of one pixel
                yield loss(inputs[chosen], correct[chosen])

    def held_out_loss() -> float:
        network.eval()
        with torch.no_grad():
            return loss(*held_out).item()

    descend(network, batches, held_out_loss, context, SCHEDULE)
    network.eval()


def _scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Give what a normalisation in evaluation does, as a product and a sum."""
    if norm.running_var is None or norm.running_mean is None:
        raise AssertionError("batch normalisation keeps running statistics here")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
