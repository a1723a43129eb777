"""One process that runs the network over batches: `python -m benchmarks.batches MODEL --batch N`.

It prints, as JSON, the median milliseconds of a run, images a second, and its peak memory in MiB
above what it held once the network had taken a small image (see `benchmarks.growth`).
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from app.inference.backbone import open_backbone
from benchmarks.contenders import CORES
from benchmarks.own_server import MIB, memory


def main() -> None:
    """Run for so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 352), metavar=("W", "H"))
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    backbone = open_backbone(options.model, "cpu", CORES)
    width, height = options.size
    backbone(np.zeros((1, 3, 64, 64), np.float32))
    idle = peak_mib()
    images = np.random.default_rng(0).random((options.batch, 3, height, width), np.float32)
    times: list[float] = []
    while sum(times) < options.seconds or len(times) < 3:
        started = time.perf_counter()
        backbone(images)
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    print(json.dumps([1000 * median, options.batch / median, peak_mib() - idle]))


def peak_mib() -> float:
    """Give this process's largest resident memory so far."""
    # Not getrusage: that keeps the peak of whoever started this process.
    return memory(os.getpid(), "VmHWM") / MIB


if __name__ == "__main__":
    main()
