"""How many threads an inference should have: one session's options against two callers.

`python -m benchmarks.sessions [--model FILE] [--size W H]` measures answers a second of one and of
two callers on a session of one thread and of all cores' threads, spinning between operators or
not; interleaved, medians over rounds.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.contenders import CORES
from benchmarks.floors import rate
from benchmarks.shapes import BUNDLED, ROOT


def open_session(model: Path, threads: int, spinning: bool) -> ort.InferenceSession:
    """Load a network."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / f"models/{BUNDLED}/model.onnx")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("W", "H"))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    sessions = {
        (threads, spinning): open_session(options.model, threads, spinning)
        for threads, spinning in itertools.product((1, CORES), (True, False))
        if threads > 1 or spinning  # a session of one thread has nobody to wait for
    }
    images = np.random.default_rng(1).random((1, 3, *options.size[::-1]), np.float32)
    feed = {next(iter(sessions.values())).get_inputs()[0].name: images}
    rates: dict[tuple[int, bool, int], list[float]] = {}
    for _ in range(options.rounds):
        for (threads, spinning), session in sessions.items():
            for callers in (1, 2):
                step: Callable[[], object] = partial(session.run, None, feed)
                found = rate([step] * callers, options.seconds)
                rates.setdefault((threads, spinning, callers), []).append(found)
    print("| threads | spinning | callers | answers/s |\n|---:|---|---:|---:|")
    for (threads, spinning, callers), values in rates.items():
        word = "yes" if spinning else "no"
        print(f"| {threads} | {word} | {callers} | {statistics.median(values):.1f} |")


if __name__ == "__main__":
    main()
