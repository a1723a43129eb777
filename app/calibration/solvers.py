"""The two solvers behind every fit: a quasi-Newton one for convex problems, and Adam.

The convex problems are streamed: one evaluation is one pass over the pixels, so passes are what
is saved. Several independent problems (the experts of a class-conditional calibrator) are solved
side by side, each with its own step and its own memory, from the same passes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from app.calibration.base import FitContext

MAX_PASSES = 300
MEMORY = 10  # pairs that L-BFGS remembers; fewer where there are millions of parameters
TOLERANCE = 1e-10  # of the expected gain, in nats per pixel
SMALLEST_STEP = 1e-8


class Problem(Protocol):
    """E independent convex problems in P parameters each, in float64."""

    def evaluate(self, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Points [E,P] to values [E] and gradients [E,P]; only `active` [E] rows are looked at."""

    def precondition(self, gradient: Tensor) -> Tensor:
        """Gradients [E,P] times a positive definite guess of the inverse Hessian, [E,P]."""


class Memory:
    """The last steps and changes of gradient of each problem, as a ring per problem."""

    def __init__(self, start: Tensor) -> None:
        size = MEMORY if start.numel() < 10**6 else 4
        self.steps = start.new_zeros(size, *start.shape)
        self.changes = torch.zeros_like(self.steps)
        self.next = torch.zeros(len(start), dtype=torch.int64)
        self.rows = torch.arange(len(start))

    def add(self, step: Tensor, change: Tensor, accepted: Tensor) -> None:
        """Remember the pairs [E,P] of the accepted problems [E] that have positive curvature."""
        kept = accepted & ((step * change).sum(1) > 1e-12 * (change * change).sum(1))
        place = (self.next[kept], self.rows[kept])
        self.steps[place] = step[kept]
        self.changes[place] = change[kept]
        self.next[kept] = (self.next[kept] + 1) % len(self.steps)

    def multiply(
        self, gradient: Tensor, free: Tensor, precondition: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Estimate inverse Hessian times gradient by the two-loop recursion, [E,P].

        Only `free` parameters [E,P] exist for it, in the gradient as in the remembered pairs.
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
        """Give a step and a change [E,P] and 1 over their product [E], 0 where there is none."""
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

    L-BFGS with backtracking; bounds are kept by projection, with the parameters that rest on
    their bound, or nearly so, sent straight to it (Bertsekas 1982). Ends where the expected
    gain falls under 1e-10, or no step helps, or after 300 passes. The value stays below the
    start's, but for rounding.
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
        # Between two slopes of opposite sign a secant finds the minimum of a parabola.
        shorter = (expected / (expected - slope)).nan_to_num(0.0).clamp(0.05, 0.7)
        step = torch.where(better, 1.0, step * shorter)
        renewed = _direction(problem, memory, point, gradient, floor)
        direction = torch.where(better[:, None], renewed, direction)
    context.progress(stage, 1.0)
    return point


def _improved(value: Tensor, new_value: Tensor, slope: Tensor, new_slope: Tensor) -> Tensor:
    """Armijo's test, or the same read off the slopes where rounding hides the gain.

    Along a parabola both are one; near the minimum only slopes can still be told apart in
    float32 passes (Hager and Zhang 2005).
    """
    hidden = new_value <= value + 1e-8 * (1 + value.abs())
    return (new_value <= value + 1e-4 * slope) | (hidden & (new_slope <= -0.9 * slope))


def _direction(
    problem: Problem, memory: Memory, point: Tensor, gradient: Tensor, floor: Tensor
) -> Tensor:
    """Quasi-Newton direction [E,P] in the parameters that are free to move."""
    distance = ((point - gradient).maximum(floor) - point).norm(dim=1, keepdim=True)
    free = (point > floor + distance.clamp_max(1e-3)) | (gradient < 0)
    quasi_newton = memory.multiply(gradient, free, problem.precondition)
    return torch.where(free, -quasi_newton, floor - point)


@dataclass(frozen=True)
class Schedule:
    """How Adam goes about it; a round is one look at every batch.

    With `cooling` the rate falls to nothing along half a cosine, from round to round.
    """

    stage: str
    rate: float
    rounds: int
    patience: int
    cooling: bool = False

    def rate_at(self, count: int) -> float:
        """Give the learning rate of a round, counted from 0."""
        fraction = (1 + math.cos(math.pi * count / self.rounds)) / 2 if self.cooling else 1.0
        return self.rate * fraction


def descend(
    module: nn.Module,
    batches: Callable[[], Iterator[Tensor]],
    held_out_loss: Callable[[], float],
    context: FitContext,
    schedule: Schedule,
) -> None:
    """Train by Adam on the batches' losses, and end with the best held-out state.

    `batches()` yields one differentiable loss after another; `held_out_loss()` is asked after
    each round, and `patience` rounds without a gain end the training. The state with which
    training starts takes part, so training never leaves a module worse off.
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
