"""`make bench`: this service and other servers, the same network, one run, interleaved.

`python -m benchmarks.serving` makes the shapes ready, finds each other server's better layout
(one process of two threads or two of one), then goes round: every server in turn is started,
warmed, measured at every concurrency, and ended, so that only one is there at a time; the order
turns by one each round. The table holds medians over rounds, and latencies of all rounds together.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contenders import (
    CONTENDERS,
    CORES,
    LAYOUTS,
    REFERENCE,
    Contender,
    mask_of,
    plan_of,
)
from benchmarks.floors import FLOORS
from benchmarks.load import ask_once, run_window, wait_until
from benchmarks.machine import machine
from benchmarks.processes import PeakMemory, started
from benchmarks.servers.pipeline import ENVIRONMENT
from benchmarks.shapes import ROOT, SHAPES, Ready, make_ready
from benchmarks.tables import Measured, Record, put_table, table

START_TIMEOUT_S = 180.0
LEAST_AGREEMENT = 0.999
PILOT_CONCURRENCY = 4
OURS = (1, CORES)

Layout = tuple[int, int]


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    shapes: list[str]
    servers: list[str]
    concurrency: list[int]
    seconds: float
    warm: float
    rounds: int
    layout: Layout | None
    folder: Path
    docs: Path | None


def free_port() -> int:
    """Ask the system for a port nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Running:
    """A server that answers; `start_s` is what it took to answer the first image."""

    port: int
    process: int
    start_s: float


@contextmanager
def running(contender: Contender, ready: Ready, layout: Layout, folder: Path) -> Iterator[Running]:
    """Start a server on a port of its own, wait until it answers an image, and end it."""
    port = free_port()
    environment = contender.environment(ready, layout, port)
    log = folder / f"{contender.name}.log"
    with started(contender.command(port), environment, log) as process:

        def answers() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"{contender.name} ended with {process.returncode}: see {log}")
            return contender.answers(port, ready)

        yield Running(port, process.pid, wait_until(answers, START_TIMEOUT_S))


def measure(
    contender: Contender, ready: Ready, layout: Layout, options: Options
) -> tuple[list[Measured], float]:
    """Measure one server at every concurrency; the second value is its mask's agreement."""
    request = contender.request(ready.image_file.read_bytes())
    measured = []
    with running(contender, ready, layout, options.folder) as server:
        mask = mask_of(ask_once(server.port, request))
        reference = np.load(reference_file(ready, options.folder))
        run_window(server.port, request, max(options.concurrency), options.warm)
        for concurrency in options.concurrency:
            with PeakMemory(server.process) as memory:
                window = run_window(server.port, request, concurrency, options.seconds)
            measured.append(Measured(concurrency, window, memory.peak, server.start_s))
    return measured, float((mask == reference).mean())


def reference_file(ready: Ready, folder: Path) -> Path:
    """Where the reference server's mask is kept."""
    return folder / f"{ready.shape.name}-mask.npy"


def keep_reference(ready: Ready, options: Options) -> None:
    """Ask the reference server for its mask, which all others must give as well."""
    contender = CONTENDERS[REFERENCE]
    with running(contender, ready, LAYOUTS[0], options.folder) as server:
        body = ask_once(server.port, contender.request(ready.image_file.read_bytes()))
    np.save(reference_file(ready, options.folder), mask_of(body))


def better_layout(contender: Contender, ready: Ready, options: Options) -> Layout:
    """Measure answers a second in each layout, unless one is given, and take the faster."""
    if contender.ours or options.layout is not None:
        return OURS if contender.ours else options.layout or OURS
    rates: dict[Layout, float] = {}
    request = contender.request(ready.image_file.read_bytes())
    for layout in LAYOUTS:
        with running(contender, ready, layout, options.folder) as server:
            run_window(server.port, request, PILOT_CONCURRENCY, options.warm)
            window = run_window(server.port, request, PILOT_CONCURRENCY, options.seconds)
        rates[layout] = window.throughput
    say(f"pilot of {contender.name}: " + ", ".join(f"{k}: {v:.1f}/s" for k, v in rates.items()))
    return max(rates, key=lambda layout: rates[layout])


def floor(name: str, ready: Ready, options: Options) -> float:
    """Run one of the loops without a server; answers a second."""
    plan = plan_of(ready, OURS, 0)
    command = ["-m", "benchmarks.floors", name, str(options.seconds), str(ready.image_file)]
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, ENVIRONMENT: plan.to_json(), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return float(done.stdout)


def run_shape(name: str, options: Options) -> Record:
    """Measure one shape: pilots, then rounds."""
    shape = SHAPES[name]
    say(f"{name}: making it ready")
    ready = make_ready(shape, options.folder / name)
    keep_reference(ready, options)
    contenders = [c for c in (CONTENDERS[name] for name in options.servers) if c.serves(ready)]
    record = Record(name, shape.title, {c.name: c.title for c in contenders})
    for contender in contenders:
        record.layouts[contender.name] = better_layout(contender, ready, options)
    for number in range(options.rounds):
        for floor_name in FLOORS:
            record.floors.setdefault(floor_name, []).append(floor(floor_name, ready, options))
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            layout = record.layouts[contender.name]
            measured, agreement = measure(contender, ready, layout, options)
            same_network = contender.model is None
            record.add(contender.name, measured, agreement if same_network else 1.0)
            if same_network and agreement < LEAST_AGREEMENT:
                raise SystemExit(
                    f"{contender.name}: expected the same mask as {REFERENCE} on "
                    f"{LEAST_AGREEMENT:.1%} of the pixels, got {agreement:.3%}"
                )
            rates_now = ", ".join(f"{m.concurrency}: {m.window.throughput:.1f}/s" for m in measured)
            say(f"{name} round {number + 1}: {contender.name} {rates_now}")
    return record


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def read_layout(text: str) -> Layout:
    """Read PROCESSESxTHREADS."""
    processes, _, threads = text.partition("x")
    return int(processes), int(threads)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default_shapes = [name for name in SHAPES if name != "large-segformer"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=default_shapes)
    parser.add_argument("--servers", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each window")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before the windows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layout", type=read_layout, help="1x2 or 2x1 for all; default: a pilot")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/benchmarks")
    parser.add_argument("--docs", type=Path, help="a Markdown file to put the table into")
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Measure, print the table, and keep the figures."""
    # A run that is told to end must end its servers as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    facts = machine()
    records = [run_shape(name, options) for name in options.shapes]
    text = table(records, facts)
    print(text)
    figures = {"machine": facts, "shapes": [record.figures() for record in records]}
    (options.folder / "serving.json").write_text(json.dumps(figures, indent=1))
    if options.docs is not None:
        put_table(options.docs, "serving", text)


if __name__ == "__main__":
    main()
