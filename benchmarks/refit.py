"""Time and peak memory of a refit with `method=auto`: a dense upload, and a large table.

    python -m benchmarks.refit [--shape dense|table] [--images N] [--pixels P] [--classes K]

The upload is made up: logits of an over-confident network that confuses some classes, float32 maps
or a float16 table. Each fit runs in a process of its own, under its own thread count, so that its
peak memory is its own. `dense` is by default as large as CamVid's validation set on a grid of 120
by 90 cells, `table` a hundredth of 2,000 images of 56 by 56 cells and 150 classes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from app.calibration.base import FitContext
from app.calibration.selection import AUTO, fit
from app.datasets.uploads import Limits, open_upload, unpack
from app.inference.predictor import Predictor

VOID = 255
UNLIMITED = 1 << 50
DEFAULTS = {"dense": (101, 120 * 90, 11), "table": (20, 56 * 56, 150)}


class Figures(NamedTuple):
    """What one fit took; seconds by stage."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    chosen: str
    refused: list[str]
    stages: dict[str, float]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refit", description=__doc__)
    parser.add_argument("--shape", choices=DEFAULTS, default="dense")
    parser.add_argument("--images", type=int)
    parser.add_argument("--pixels", type=int, help="of an image")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1, help="the median by wall time is told")
    parser.add_argument("--upload", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [
        given or usual
        for given, usual in zip(
            (options.images, options.pixels, options.classes), DEFAULTS[options.shape], strict=True
        )
    ]
    if options.upload:
        torch.set_num_threads(options.threads)
        print(json.dumps(refit(options.upload, sizes[2])._asdict()))
        return
    with tempfile.TemporaryDirectory(prefix="segcal-refit-") as name:
        upload = Path(name)
        write_upload(upload, options.shape, *sizes)
        shown = [f"--{key}={value}" for key, value in zip(
            ("images", "pixels", "classes"), sizes, strict=True)]  # fmt: skip
        command = [
            sys.executable, "-m", "benchmarks.refit", f"--shape={options.shape}", *shown,
            f"--threads={options.threads}", f"--upload={upload}",
        ]  # fmt: skip
        runs = [run(command) for _ in range(options.runs)]
    median = sorted(runs, key=lambda one: one.wall_s)[len(runs) // 2]
    print(f"{options.shape}: {sizes[0]} images x {sizes[1]} pixels x {sizes[2]} classes")
    print(f"{median.wall_s:.1f} s, {median.cpu_s:.1f} s of CPU, peak {median.peak_mib:.0f} MiB")
    print(f"chosen: {median.chosen}; left out: {', '.join(median.refused) or 'none'}")
    for stage, seconds in median.stages.items():
        print(f"  {seconds:8.2f} s  {stage}")


def run(command: list[str]) -> Figures:
    """Run one fit in a process of its own."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def refit(upload: Path, classes: int) -> Figures:
    """Fit on an upload as a job does, and measure it."""
    data = open_upload(upload, classes, VOID, UNLIMITED, _no_predictor, lambda _stage, _share: None)
    stages: dict[str, float] = {}
    current, last = "starting", time.perf_counter()

    def progress(stage: str, _share: float) -> None:
        nonlocal current, last
        now = time.perf_counter()
        stages[current] = stages.get(current, 0.0) + now - last
        current, last = stage, now

    wall, cpu = time.perf_counter(), time.process_time()
    outcome = fit(data, AUTO, FitContext(seed=0, progress=progress))
    progress("end", 1.0)
    return Figures(
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        chosen=outcome.chosen.method,
        refused=list(outcome.refused),
        stages=stages,
    )


def write_upload(folder: Path, shape: str, images: int, pixels: int, classes: int) -> None:
    """Write made-up logits and labels, image by image, as an unpacked upload."""
    rng = np.random.default_rng(0)
    confusion = np.eye(classes) + 0.1 * rng.standard_normal((classes, classes)) / classes**0.5
    kind = np.float32 if shape == "dense" else np.float16
    grid = (images, classes, 1, pixels) if shape == "dense" else (images * pixels, classes)
    kept = (images, 1, pixels) if shape == "dense" else (images * pixels,)
    logits = np.lib.format.open_memmap(folder / "logits", "w+", kind, grid)
    labels = np.lib.format.open_memmap(folder / "labels", "w+", np.uint8, kept)
    for index in range(images):
        truth = 2 * rng.standard_normal((classes, pixels)).astype(np.float32)
        noise = rng.gumbel(size=truth.shape)
        rows = slice(index * pixels, (index + 1) * pixels)
        if shape == "dense":
            logits[index, :, 0] = 2 * truth
            labels[index, 0] = (confusion @ truth + noise).argmax(axis=0)
        else:
            logits[rows] = 2 * truth.T
            labels[rows] = (confusion @ truth + noise).argmax(axis=0)
    logits.flush()
    labels.flush()
    if shape == "table":
        with (folder / "image_index").open("wb") as file:
            np.save(file, np.repeat(np.arange(images), pixels))
    unpack(folder, Limits(UNLIMITED, UNLIMITED, UNLIMITED))


def _no_predictor() -> Predictor:
    raise AssertionError("an upload of logits needs no model")


if __name__ == "__main__":
    main()
