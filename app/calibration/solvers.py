"""Solvers: projected L-BFGS for convex problems, and Adam with early stopping.

Convex problems are streamed: one evaluation is one pass over the pixels, so the number of passes
determines the time. Several independent problems (the experts of a class-conditional calibrator)
are solved from the same passes, each with its own step and its own L-BFGS memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from app.calibration.base import FitContext

MAX_PASSES = 300
MEMORY = 10  # L-BFGS pairs; 4 from a million parameters on
TOLERANCE = 1e-10  # of the expected decrease, nats per pixel
SMALLEST_STEP = 1e-8


class Problem(Protocol):
    """E independent convex problems in P parameters each, in float64."""

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Compute values [E] and gradients [E,P] at points [E,P]; only `active` [E] rows count."""

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply gradients [E,P] by a positive definite approximate inverse Hessian, [E,P]."""


class Memory:
    """Ring buffer, for each problem, of the last steps and gradient changes."""

    def __init__(self, start: Tensor) -> None:
        size = MEMORY if start.numel() < 10**6 else 4
        self.steps = start.new_zeros(size, *start.shape)
        self.changes = torch.zeros_like(self.steps)
        self.next = torch.zeros(len(start), dtype=torch.int64)
        self.rows = torch.arange(len(start))

    def add(self, step: Tensor, change: Tensor, accepted: Tensor) -> None:
        """Store the pairs [E,P] of the accepted problems [E] that have positive curvature."""
        kept = accepted & ((step * change).sum(1) > 1e-12 * (change * change).sum(1))
        place = (self.next[kept], self.rows[kept])
        self.steps[place] = step[kept]
        self.changes[place] = change[kept]
        self.next[kept] = (self.next[kept] + 1) % len(self.steps)

    def multiply(
        self, gradient: Tensor, free: Tensor, precondition: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Multiply the gradient by the inverse Hessian by the two-loop recursion, [E,P].

        Gradient and stored pairs are restricted to the `free` parameters, bool [E,P].
        """
        result, fractions = gradient * free, []
        pairs = [self._pair(age, free) for age in range(len(self.steps))]
        for step, change, weight in pairs:
            fraction = weight * (step * result).sum(1)
            result -= fraction[:, None] * change
            fractions.append(fraction)
        _, change, weight = pairs[0]
        size = weight * (change * precondition(change)).sum(1)
        scale = torch.where(size > 0, 1 / size.clamp_min(1e-300), 1.0)
        result = scale[:, None] * precondition(result) * free
        for (step, change, weight), fraction in zip(pairs[::-1], fractions[::-1], strict=True):
            result += (fraction - weight * (change * result).sum(1))[:, None] * step
        return result

    def _pair(self, age: int, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return step and gradient change [E,P] and 1 / their product [E], 0 without a pair."""
        place = ((self.next - 1 - age) % len(self.steps), self.rows)
        step, change = self.steps[place] * free, self.changes[place] * free
        curvature = (step * change).sum(1)
        valid = curvature > 1e-12 * (change * change).sum(1)
        return step, change, torch.where(valid, 1 / curvature.clamp_min(1e-300), 0.0)


def minimise(
    problem: Problem,
    start: Tensor,
    context: FitContext,
    stage: str,
    lower: Tensor | None = None,
) -> Tensor:
    """Minimise E convex problems from `start` [E,P], above `lower` [E,P] where one is given.

    L-BFGS with backtracking. Bounds are enforced by projection; parameters at or near their
    bound are set to it (Bertsekas 1982). Stops when the expected decrease falls below 1e-10 nats
    per pixel, when no step decreases the value, or after 300 passes. The value at the solution is
    at most the value at `start`, up to rounding.
    """
    floor = torch.full_like(start, -torch.inf) if lower is None else lower
    point, active = start.maximum(floor), torch.ones(len(start), dtype=torch.bool)
    value, gradient = problem.evaluate(point, active)
    memory = Memory(point)
    step = torch.ones_like(value)
    direction = _direction(problem, memory, point, gradient, floor)
    for count in range(MAX_PASSES):
        context.progress(stage, count / MAX_PASSES)
        move = (point + step[:, None] * direction).maximum(floor) - point
        expected = (gradient * move).sum(1)
        active &= (expected < -TOLERANCE * step.clamp_max(1.0)) & (step > SMALLEST_STEP)
        if not active.any():
            break
        new_value, new_gradient = problem.evaluate(point + move, active)
        slope = (new_gradient * move).sum(1)
        better = active & _improved(value, new_value, expected, slope)
        memory.add(move, new_gradient - gradient, better)
        point = torch.where(better[:, None], point + move, point)
        value = torch.where(better, new_value, value)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        # Between slopes of opposite sign the secant gives the minimum of a parabola.
        shorter = (expected / (expected - slope)).nan_to_num(0.0).clamp(0.05, 0.7)
        step = torch.where(better, 1.0, step * shorter)
        renewed = _direction(problem, memory, point, gradient, floor)
        direction = torch.where(better[:, None], renewed, direction)
    context.progress(stage, 1.0)
    return point


def _improved(value: Tensor, new_value: Tensor, slope: Tensor, new_slope: Tensor) -> Tensor:
    """Test Armijo's condition, or its form in the slopes where rounding exceeds the decrease.

    The forms are equivalent on a parabola; near the minimum the values of float32 passes are
    equal up to rounding while their slopes still differ (Hager and Zhang 2005).
    """
    hidden = new_value <= value + 1e-8 * (1 + value.abs())
    return (new_value <= value + 1e-4 * slope) | (hidden & (new_slope <= -0.9 * slope))


def _direction(
    problem: Problem, memory: Memory, point: Tensor, gradient: Tensor, floor: Tensor
) -> Tensor:
    """Compute the quasi-Newton direction [E,P] in the parameters away from their bounds."""
    distance = ((point - gradient).maximum(floor) - point).norm(dim=1, keepdim=True)
    free = (point > floor + distance.clamp_max(1e-3)) | (gradient < 0)
    quasi_newton = memory.multiply(gradient, free, problem.precondition)
    return torch.where(free, -quasi_newton, floor - point)


@dataclass(frozen=True)
class Schedule:
    """Adam's learning rate, maximum number of rounds (epochs) and patience.

    With `cooling` the rate decays to 0 along half a cosine.
    """

    stage: str
    rate: float
    rounds: int
    patience: int
    cooling: bool = False

    def rate_at(self, count: int) -> float:
        """Compute the learning rate of a round, counted from 0."""
        fraction = (1 + math.cos(math.pi * count / self.rounds)) / 2 if self.cooling else 1.0
        return self.rate * fraction


def descend(
    module: nn.Module,
    batches: Callable[[], Iterator[Tensor]],
    held_out_loss: Callable[[], float],
    context: FitContext,
    schedule: Schedule,
) -> None:
    """Train by Adam on the batches' losses and load the state of the lowest held-out loss.

    `batches()` yields differentiable losses. `held_out_loss()` is evaluated after each round;
    `patience` rounds without a decrease stop the training. The initial state is a candidate too,
    so the held-out loss never increases.
    """
    optimiser = torch.optim.Adam(module.parameters(), lr=schedule.rate)
    best, best_state, waited = held_out_loss(), _copied_state(module), 0
    for count in range(schedule.rounds):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(count)
        module.train()
        for loss in batches():
            context.progress(schedule.stage, count / schedule.rounds)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        module.eval()
        current = held_out_loss()
        waited = 0 if current < best else waited + 1
        if current < best:
            best, best_state = current, _copied_state(module)
        if waited >= schedule.patience:
            break
    module.load_state_dict(best_state)
    context.progress(schedule.stage, 1.0)


def _copied_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
