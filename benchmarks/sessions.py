"""How many threads an inference should have, and how many images: one session's options.

`python -m benchmarks.sessions [--model FILE] [--size W H]` measures images a second of one and of
two callers on a session of one thread and of all cores' threads, spinning between operators or
not, with the memory arena or without, and with batches of several equal images; interleaved,
medians over rounds.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from benchmarks.contenders import CORES
from benchmarks.floors import rate
from benchmarks.shapes import BUNDLED, ROOT

BATCHES = (1, 2, 4)


class Options(NamedTuple):
    """A session's options."""

    threads: int
    spinning: bool
    arena: bool


OPTIONS = (
    Options(1, spinning=True, arena=True),  # one thread has nobody to wait for
    Options(1, spinning=True, arena=False),
    Options(CORES, spinning=True, arena=True),
    Options(CORES, spinning=False, arena=True),
    Options(CORES, spinning=True, arena=False),
)


def open_session(model: Path, wanted: Options) -> ort.InferenceSession:
    """Load a network."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = wanted.threads
    options.enable_cpu_mem_arena = wanted.arena
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(wanted.spinning)))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / f"models/{BUNDLED}/model.onnx")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("W", "H"))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    sessions = {wanted: open_session(options.model, wanted) for wanted in OPTIONS}
    name = next(iter(sessions.values())).get_inputs()[0].name
    images = np.random.default_rng(1).random((max(BATCHES), 3, *options.size[::-1]), np.float32)
    rates: dict[tuple[Options, int, int], list[float]] = {}
    for _ in range(options.rounds):
        for wanted, callers, batch in itertools.product(OPTIONS, (1, 2), BATCHES):
            if batch > 1 and not (wanted.spinning and wanted.arena):
                continue
            step: Callable[[], object] = partial(sessions[wanted].run, None, {name: images[:batch]})
            found = batch * rate([step] * callers, options.seconds)
            rates.setdefault((wanted, callers, batch), []).append(found)
    print("| threads | spinning | arena | callers | batch | images/s |")
    print("|---:|---|---|---:|---:|---:|")
    for (wanted, callers, batch), values in rates.items():
        spinning, arena = ("yes" if value else "no" for value in wanted[1:])
        print(
            f"| {wanted.threads} | {spinning} | {arena} | {callers} | {batch} "
            f"| {statistics.median(values):.1f} |"
        )


if __name__ == "__main__":
    main()
