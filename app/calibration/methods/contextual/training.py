"""What contextual scaling's opinions form from: pixels of a fit's images, and of their copies."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.calibration.base import FitContext
from app.calibration.dataset import LabelledImage, ValidationSet, copies_of
from app.calibration.methods.contextual.detector import Opinion
from app.calibration.methods.contextual.features import Context
from app.calibration.methods.contextual.image_statistics import figures_of, row_means
from app.calibration.methods.contextual.networks import Rows, draw_rows
from app.calibration.solvers import Schedule

SAMPLE_FLOATS = 2**22  # of features
STAGE = "training the selectors"

# Reads an image: what is seen of the cells that are looked at, and their labels.
See = Callable[[LabelledImage], tuple[Context, Tensor]]


@dataclass(frozen=True)
class Lesson:
    """At most so many pixels of each image, and of each copy; and how they are learned from."""

    pixels: int
    copied: int
    schedule: Schedule


CLEAN = Lesson(4800, 0, Schedule(STAGE, rate=2e-2, rounds=20, patience=20, cooling=True))
# What is learned too well of the kinds of weather at hand does not carry over to others.
SPOILED = Lesson(600, 200, Schedule(STAGE, rate=3e-3, rounds=14, patience=4))


def teach(
    opinion: Opinion,
    lesson: Lesson,
    data: ValidationSet,
    parts: tuple[list[int], list[int]],
    see: See,
    context: FitContext,
) -> None:
    """Let an opinion form from some images of a set; others choose the round and set the trust."""
    (trained, usual), (held, others) = (
        _draw(opinion, lesson, data, indices, see, context) for indices in parts
    )
    opinion.learn(trained, held, torch.cat([usual, others]), context, lesson.schedule)


def looks_of(data: ValidationSet, step: int, context: FitContext) -> Tensor | None:
    """Give what every image's picture looks like, float32 [n,4]; None where one has no picture."""
    looks = []
    for index in range(len(data)):
        context.progress("looking at pictures", index / len(data))
        picture = data[index].picture
        if picture is None:
            return None
        looks.append(figures_of(row_means(picture[:, ::step])))
    return torch.stack(looks)


def _draw(
    opinion: Opinion,
    lesson: Lesson,
    data: ValidationSet,
    indices: list[int],
    see: See,
    context: FitContext,
) -> tuple[Rows, Tensor]:
    """Draw pixels of images, with copies or without, and the mean features [n,F] of each."""
    placed = opinion.placed
    generator = torch.Generator().manual_seed(context.seed)
    share = SAMPLE_FLOATS // (len(opinion.known.usual) * len(indices))
    quota = min(lesson.pixels, max(share, 16))
    few = min(quota, lesson.copied)
    rows, means = [], []
    for number, index in enumerate(indices):
        context.progress("reading", number / len(indices))
        copies = copies_of(data, index) if few else ()
        for image, count in [(data[index], quota), *((copy, few) for copy in copies)]:
            seen, labels = see(image)
            rows.append(draw_rows(seen, labels, count, number, generator, placed=placed))
            means.append(seen.seen(placed=placed)[0].flatten(1).mean(dim=1))
    return Rows.joined(rows), torch.stack(means)
