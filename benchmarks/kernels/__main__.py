"""Measure the postprocessing kernel beside torch and beside the machine's limits.

`python -m benchmarks.kernels [--threads 2] [--rounds 15]` prints medians of interleaved rounds;
torch runs interpolate, softmax and max. The limit is the slower of the memory traffic at the
measured copy bandwidth and the powers of two at the measured rate.
"""

import argparse
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from app.inference.postprocess import postprocess
from app.inference.preprocess import Geometry
from app.inference.threads import RowWorkers
from app.numerics import compiled, power_of_two
from app.settings import available_cores
from benchmarks.harness import median_seconds, table

INVERSE_TEMPERATURE = 0.6
COPY_FLOATS = 1 << 24  # 64 MiB, larger than the caches
CACHED_FLOATS = 1 << 12  # 16 KiB, within the first-level cache
PASSES = 2000
LIMIT_ROUNDS = 5


@dataclass(frozen=True)
class Roofline:
    """Highest rates of some rounds: bytes read or written and powers of two per second."""

    bytes_per_s: float
    powers_per_s: float

    def seconds(self, shape: "Shape") -> float:
        """Return a lower bound: the slower of memory traffic and powers of two.

        Logits are read once, label map and confidence written once, and one power is computed for
        each class and pixel.
        """
        pixels, cells = shape.image[0] * shape.image[1], shape.grid[0] * shape.grid[1]
        mask_bytes = 1 if shape.classes < 256 else 2
        traffic = 4 * shape.classes * cells + (4 + mask_bytes) * pixels
        return max(traffic / self.bytes_per_s, shape.classes * pixels / self.powers_per_s)


@dataclass(frozen=True)
class Shape:
    """Number of classes, (height, width) of the logits and of the image."""

    classes: int
    grid: tuple[int, int]
    image: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.classes}x{self.image[0]}x{self.image[1]} from {self.grid[0]}x{self.grid[1]}"

    @property
    def geometry(self) -> Geometry:
        """Return a geometry without resizing and padding."""
        return Geometry(self.image, self.image, self.image)

    def logits(self, seed: int) -> Tensor:
        """Return noise float32 [K,h,w]: no class can be skipped, the slowest case."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.classes, *self.grid, generator=generator) * 3


SHAPES = (
    Shape(11, (180, 240), (360, 480)),
    Shape(19, (256, 512), (1024, 2048)),
    Shape(150, (128, 128), (512, 512)),
    Shape(171, (128, 128), (512, 512)),
)


@torch.inference_mode()
def postprocess_torch(logits: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return confidence and labels of logits [K,h,w] at the image's size."""
    fine = F.interpolate(logits[None], image, mode="bilinear", align_corners=False)[0]
    best = fine.softmax(0).max(0)
    return best.values, best.indices


@torch.inference_mode()
def postprocess_two_torch(
    logits: Tensor, calibrated: Tensor, image: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the calibrated confidence of the uncalibrated labels at the image's size."""
    both = torch.stack([logits, calibrated])
    label_logits, confidence_logits = F.interpolate(
        both, image, mode="bilinear", align_corners=False
    )
    labels = label_logits.argmax(0)
    return confidence_logits.softmax(0).gather(0, labels[None])[0], labels


def works(shape: Shape, threads: RowWorkers) -> Mapping[str, Callable[[], object]]:
    """Return everything that is measured on a shape, by column."""
    logits, calibrated, geometry = shape.logits(0), shape.logits(1), shape.geometry
    run = partial(postprocess, workers=threads)
    return {
        "torch": lambda: postprocess_torch(logits, shape.image),
        "torch, two grids": lambda: postprocess_two_torch(logits, calibrated, shape.image),
        "plain": lambda: run(logits, logits, geometry),
        "temperature": lambda: run(logits, logits, geometry, scale=INVERSE_TEMPERATURE),
        "two grids": lambda: run(logits, calibrated, geometry),
    }


def measure(shape: Shape, limits: Roofline, threads: RowWorkers, rounds: int) -> dict[str, str]:
    """Measure one shape; return milliseconds and ratios by column."""
    taken = median_seconds(works(shape, threads), rounds)
    return {name: f"{1000 * seconds:.2f}" for name, seconds in taken.items()} | {
        "torch/plain": f"{taken['torch'] / taken['plain']:.1f}",
        "two/two": f"{taken['torch, two grids'] / taken['two grids']:.1f}",
        "plain/limit": f"{taken['plain'] / limits.seconds(shape):.1f}",
    }


def measure_limits(threads: int) -> Roofline:
    """Measure copy bandwidth and powers of two per second with all threads at once."""
    sources = [np.ones(COPY_FLOATS // threads, np.float32) for _ in range(threads)]
    copies = [partial(np.copyto, np.empty_like(source), source) for source in sources]
    cached = [np.full(CACHED_FLOATS, -1.5, np.float32) for _ in range(threads)]
    powers = [partial(powers_of_two, values, PASSES) for values in cached]
    return Roofline(
        bytes_per_s=2 * 4 * COPY_FLOATS // threads * threads / least_seconds(copies),
        powers_per_s=CACHED_FLOATS * PASSES * threads / least_seconds(powers),
    )


@compiled
def powers_of_two(values: NDArray[np.float32], passes: int) -> None:
    """Replace each value x by 2 ** -x, `passes` times."""
    for _ in range(passes):
        for x in range(len(values)):
            values[x] = power_of_two(-values[x])


def least_seconds(parallel: Sequence[Callable[[], object]]) -> float:
    """Run all at once in their own threads; return the seconds of the fastest round."""
    seconds = []
    for _ in range(LIMIT_ROUNDS):
        helpers = [threading.Thread(target=work) for work in parallel]
        started = time.perf_counter()
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Measure the postprocessing kernel beside torch and the machine's limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    limits, threads = measure_limits(options.threads), RowWorkers(options.threads)
    print(
        f"{options.threads} threads; copy {limits.bytes_per_s / 1e9:.1f} GB/s, "
        f"{limits.powers_per_s / 1e9:.2f} G powers of two per second; medians of "
        f"{options.rounds}.\n"
    )
    measured = {shape: measure(shape, limits, threads, options.rounds) for shape in SHAPES}
    heads = ["ms", *measured[SHAPES[0]]]
    print(table(heads, [[str(shape), *cells.values()] for shape, cells in measured.items()]))


if __name__ == "__main__":
    main()
