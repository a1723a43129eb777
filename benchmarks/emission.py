"""Emission against torch's interpolate, softmax and max, and against the machine's limits.

`python -m benchmarks.emission [--threads 2] [--rounds 15] [--growth] [--figure growth.png]` prints
Markdown. All rivals take turns in one run; figures are medians. Peak memory is that of one call
above the process before it, each in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F

from app.inference.postprocess import emit
from app.inference.preprocess import Geometry
from app.inference.threads import RowThreads
from app.serving.warmup import rehearse
from app.settings import available_cores
from benchmarks.roofline import Roofline, measure

INVERSE_TEMPERATURE = 0.6


@dataclass(frozen=True)
class Shape:
    """Classes, a grid, and the image it is emitted at."""

    classes: int
    grid: tuple[int, int]
    image: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.classes}x{self.image[1]}x{self.image[0]} from {self.grid[1]}x{self.grid[0]}"

    @property
    def geometry(self) -> Geometry:
        """Neither resized nor padded."""
        return Geometry(self.image, self.image, self.image)

    def logits(self, seed: int) -> Tensor:
        """Noise float32 [K,h,w]: every class counts at every pixel, which is the worst case."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.classes, *self.grid, generator=generator) * 3


SHAPES = (
    Shape(11, (180, 240), (360, 480)),
    Shape(19, (256, 512), (1024, 2048)),
    Shape(150, (128, 128), (512, 512)),
    Shape(171, (128, 128), (512, 512)),
)
BY_CLASSES = tuple(Shape(k, (128, 128), (512, 512)) for k in (2, 5, 11, 19, 40, 80, 150, 171))
BY_PIXELS = tuple(
    Shape(19, (side * 2 // 4, side * 4 // 4), (side * 2, side * 4))
    for side in (160, 256, 360, 512, 720, 1024)
)


@torch.inference_mode()
def by_torch(logits: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Give confidence and labels as a serving tutorial has them."""
    fine = F.interpolate(logits[None], image, mode="bilinear", align_corners=False)[0]
    best = fine.softmax(0).max(0)
    return best.values, best.indices


@torch.inference_mode()
def rated_by_torch(
    logits: Tensor, calibrated: Tensor, image: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Give the calibrated confidence of the plain labels, both interpolated at full size."""
    both = torch.stack([logits, calibrated])
    fine, rated = F.interpolate(both, image, mode="bilinear", align_corners=False)
    labels = fine.argmax(0)
    return rated.softmax(0).gather(0, labels[None])[0], labels


def rivals(shape: Shape, threads: RowThreads) -> Mapping[str, Callable[[], object]]:
    """Everything that is measured on a shape."""
    logits, calibrated, geometry = shape.logits(0), shape.logits(1), shape.geometry
    return {
        "torch": lambda: by_torch(logits, shape.image),
        "torch, two grids": lambda: rated_by_torch(logits, calibrated, shape.image),
        "plain": lambda: emit(logits, logits, geometry, threads=threads),
        "temperature": lambda: emit(
            logits, logits, geometry, scale=INVERSE_TEMPERATURE, threads=threads
        ),
        "two grids": lambda: emit(logits, calibrated, geometry, threads=threads),
    }


def medians(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def compare(threads: int, rounds: int) -> None:
    """Print the comparison and the distance from the limits."""
    limits, crew = measure(threads), RowThreads(threads)
    print(f"{threads} threads; copy {limits.bytes_per_s / 1e9:.1f} GB/s, ", end="")
    print(f"{limits.powers_per_s / 1e9:.2f} G powers of two a second; medians of {rounds}.\n")
    names = list(rivals(SHAPES[0], crew))
    print("| ms |", *(f"{name} |" for name in names), "torch/plain | two/two | plain/limit |")
    print("|---|", *("---:|" for _ in range(len(names) + 3)))
    for shape in SHAPES:
        taken = medians(rivals(shape, crew), rounds)
        cells = [f"{1000 * taken[name]:.2f} |" for name in names]
        ratios = (
            taken["torch"] / taken["plain"],
            taken["torch, two grids"] / taken["two grids"],
            taken["plain"] / bound(limits, shape),
        )
        print(f"| {shape} |", *cells, *(f"{ratio:.1f} |" for ratio in ratios), flush=True)


def bound(limits: Roofline, shape: Shape) -> float:
    """Seconds that no emission of this shape can do without."""
    pixels, cells = shape.image[0] * shape.image[1], shape.grid[0] * shape.grid[1]
    return limits.seconds(shape.classes, pixels, cells, 1 if shape.classes < 256 else 2)


def peak_bytes(name: str, shape: Shape, threads: int) -> int:
    """Measure what one call needs above what the process had before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_one, (name, shape, threads))


def _peak_of_one(name: str, shape: Shape, threads: int) -> int:
    torch.set_num_threads(threads)
    rehearse(shape.classes)
    work = rivals(shape, RowThreads(threads))[name]
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = _kibibytes("VmRSS")
    work()
    return 1024 * (_kibibytes("VmHWM") - before)


def _kibibytes(name: str) -> int:
    """Read a figure of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


@dataclass(frozen=True)
class Growth:
    """One shape's median seconds and peak bytes, by rival."""

    shape: Shape
    seconds: Mapping[str, float]
    peak: Mapping[str, int]


def grow(shapes: tuple[Shape, ...], threads: int, rounds: int) -> list[Growth]:
    """Measure torch and the plain form over some shapes, and print them."""
    print("\n| shape | torch ms | plain ms | torch MiB | plain MiB |")
    print("|---|---:|---:|---:|---:|")
    crew, rows = RowThreads(threads), []
    for shape in shapes:
        works = {k: v for k, v in rivals(shape, crew).items() if k in ("torch", "plain")}
        row = Growth(
            shape,
            medians(works, rounds),
            {name: peak_bytes(name, shape, threads) for name in works},
        )
        rows.append(row)
        milliseconds = [f"{1000 * row.seconds[name]:.2f} |" for name in works]
        mebibytes = [f"{row.peak[name] / 2**20:.0f} |" for name in works]
        print(f"| {shape} |", *milliseconds, *mebibytes, flush=True)
    return rows


def draw(path: Path, by_classes: list[Growth], by_pixels: list[Growth]) -> None:
    """Draw time and memory against classes and pixels."""
    mpl.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for column, rows in enumerate((by_classes, by_pixels)):
        x = [r.shape.image[0] * r.shape.image[1] / 1e6 if column else r.shape.classes for r in rows]
        for name in ("torch", "plain"):
            axes[0, column].plot(x, [1000 * r.seconds[name] for r in rows], "o-", label=name)
            axes[1, column].plot(x, [r.peak[name] / 2**20 for r in rows], "o-", label=name)
        axes[0, column].set_ylabel("ms")
        axes[1, column].set_ylabel("MiB above the idle process")
        axes[1, column].set_xlabel("megapixels, 19 classes" if column else "classes, 512x512")
    for panel in axes.flat:
        panel.set_yscale("symlog" if panel.get_ylabel() != "ms" else "log")
        panel.legend()
    figure.savefig(path)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--growth", action="store_true", help="also over classes and pixels")
    parser.add_argument("--figure", type=Path, help="where to draw the growth")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compare(options.threads, options.rounds)
    if options.growth or options.figure:
        by_classes = grow(BY_CLASSES, options.threads, options.rounds)
        by_pixels = grow(BY_PIXELS, options.threads, options.rounds)
        if options.figure:
            draw(options.figure, by_classes, by_pixels)


if __name__ == "__main__":
    main()
