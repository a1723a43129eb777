"""What contextual scaling's opinions form from: pixels of a fit's images, and of their copies."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.calibration.base import FitContext
from app.calibration.dataset import LabelledImage, ValidationSet, augmented_images
from app.calibration.methods.contextual.detector import Detector
from app.calibration.methods.contextual.features import Context
from app.calibration.methods.contextual.image_statistics import compute_statistics, row_statistics
from app.calibration.methods.contextual.networks import PixelSample, sample_pixels
from app.calibration.solvers import Schedule

SAMPLE_FLOATS = 2**22  # of features
STAGE = "training the selectors"

# Reads an image: what is seen of the cells that are looked at, and their labels.
See = Callable[[LabelledImage], tuple[Context, Tensor]]


@dataclass(frozen=True)
class TrainingConfig:
    """At most so many pixels of each image, and of each copy; and how they are learned from."""

    pixels: int
    copied: int
    schedule: Schedule


CLEAN_TRAINING = TrainingConfig(
    4800, 0, Schedule(STAGE, rate=2e-2, rounds=20, patience=20, cooling=True)
)
# What is learned too well of the kinds of weather at hand does not carry over to others.
ROBUST_TRAINING = TrainingConfig(600, 200, Schedule(STAGE, rate=3e-3, rounds=14, patience=4))


def train_detector(
    detector: Detector,
    config: TrainingConfig,
    data: ValidationSet,
    parts: tuple[list[int], list[int]],
    see: See,
    context: FitContext,
) -> None:
    """Let an opinion form from some images of a set; others choose the round and set the trust."""
    (trained, mean), (held, others) = (
        _draw(detector, config, data, indices, see, context) for indices in parts
    )
    detector.learn(trained, held, torch.cat([mean, others]), context, config.schedule)


def image_statistics_of(data: ValidationSet, stride: int, context: FitContext) -> Tensor | None:
    """Give what every image's image looks like, float32 [n,4]; None where one has no image."""
    statistics = []
    for index in range(len(data)):
        context.progress("looking at images", index / len(data))
        image = data[index].image
        if image is None:
            return None
        statistics.append(compute_statistics(row_statistics(image[:, ::stride])))
    return torch.stack(statistics)


def _draw(
    detector: Detector,
    config: TrainingConfig,
    data: ValidationSet,
    indices: list[int],
    see: See,
    context: FitContext,
) -> tuple[PixelSample, Tensor]:
    """Draw pixels of images, with copies or without, and the mean features [n,F] of each."""
    placed = detector.placed
    generator = torch.Generator().manual_seed(context.seed)
    quota_of_budget = SAMPLE_FLOATS // (len(detector.known.mean) * len(indices))
    quota = min(config.pixels, max(quota_of_budget, 16))
    few = min(quota, config.copied)
    rows, means = [], []
    for number, index in enumerate(indices):
        context.progress("reading", number / len(indices))
        augmented = augmented_images(data, index) if few else ()
        for image, count in [(data[index], quota), *((copy, few) for copy in augmented)]:
            seen, labels = see(image)
            rows.append(sample_pixels(seen, labels, count, number, generator, placed=placed))
            means.append(seen.seen(placed=placed)[0].flatten(1).mean(dim=1))
    return PixelSample.joined(rows), torch.stack(means)
