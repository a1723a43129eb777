"""Measure several backbones at a time, each in a process of one thread."""

import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from app.settings import available_cores
from benchmarks.paper.backbones import backbones
from benchmarks.paper.study import run


def results_path(runs: Path, name: str) -> Path:
    """Return the file of a backbone's figures."""
    return runs / "results" / f"{name}.json"


def measure_missing(names: Sequence[str], runs: Path) -> None:
    """Store the figures of each backbone that has none, as many at a time as there are cores."""
    (runs / "results").mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not results_path(runs, name).is_file()]
    # Torch cannot be forked once it has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(available_cores(), context) as processes:
        for line in processes.map(partial(measure, runs), missing):
            print(line, file=sys.stderr, flush=True)


def measure(runs: Path, name: str) -> str:
    """Store the figures of one backbone; return a line about the time that this took."""
    torch.set_num_threads(1)
    began, processor = time.monotonic(), time.process_time()
    for backbone in backbones([name], runs):
        results_path(runs, name).write_text(run(backbone).model_dump_json(), "utf-8")
    wall, used = (time.monotonic() - began) / 60, (time.process_time() - processor) / 60
    return f"measured {name} in {wall:.1f} min, {used:.1f} min of processor time"
