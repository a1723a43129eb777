"""Measure Ray Data beside the plain command, and Ray Serve beside the plain server.

Run `python -m benchmarks.cluster MEASUREMENT [options]` in the environment of `make fleet`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.cluster.actors import cluster, map_on_actors
from benchmarks.command_line import shifted
from benchmarks.harness import (
    CORES,
    EXAMPLE,
    MIB,
    ROOT,
    Server,
    Window,
    describe_machine,
    form_request,
    free_port,
    own_server,
    peak_memory,
    percentile,
    print_progress,
    process_tree,
    run_command,
    run_window,
    started,
    table,
    tree_bytes,
    wait_until,
)
from benchmarks.serving.processes import cpu_seconds

MODEL = "camvid-street-int8"
PATH = "/segment?include=mask,confidence"
WORKERS = (1, 2, 4)
SAMPLE_S = 0.25
WARM = 0.25  # fraction of the images that are not counted: meanwhile the other actors start
BATCH_HEADS = (
    "engine", "workers", "start-up s", "images/s", "ratio", "core ms/image", "overhead", "end s",
    "whole s", "peak MiB",
)  # fmt: skip
SERVE_HEADS = (
    "clients", "plain, answers/s", "Ray Serve", "ratio", "plain, core ms/answer", "Ray Serve",
    "plain, p50 ms", "Ray Serve", "failed",
)  # fmt: skip
NO_OPERATIONS = (2_000, 12_000)  # images
RECKONED_CORES = (10, 100, 1_000)
RECKONED_HEADS = (
    "cores", "images/s of the cores", "images/s of the driver", "MB/s of the store",
    "ten million images, h",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Times of one command in seconds, and its peak memory in bytes (PSS).

    `startup` lasts until the first mask is written, `end` from the last mask to the exit. `size` is
    the mean of the bytes of an image and its results.
    """

    startup: float
    rate: float  # images/s after the first quarter
    work: float  # seconds of a core for an image, likewise
    end: float
    whole: float
    peak: int
    size: float


def segment(paths: Sequence[Path], model: str, workers: int | None) -> Batch:
    """Run `segcal segment` on one thread, or on Ray with workers of one thread each."""
    with tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as name:
        out = Path(name)
        engine = [] if workers is None else ["--ray", "local"]
        command = [
            sys.executable, "-m", "app", "segment", *map(str, paths), "--model", model,
            "--out", str(out), *engine,
        ]  # fmt: skip
        environment = {
            **os.environ,
            "SEGCAL_THREADS": str(workers or 1),  # with Ray, the cores of the local cluster
            "SEGCAL_WORKERS": "1",
            "OMP_NUM_THREADS": "1",
        }
        began = time.time()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with peak_memory(process.pid) as peak, processor_times(process.pid) as samples:
            _, told = process.communicate()
        ended = time.time()
        written = sorted(path.stat().st_mtime for path in out.glob("*.mask.png"))
        size = sum(path.stat().st_size for path in (*paths, *out.glob("*.png"))) / len(paths)
        if len(written) != len(paths):
            raise SystemExit(f"expected {len(paths)} masks, got {len(written)}: {told[-2000:]}")
    first = int(WARM * len(written))
    rate = (len(written) - 1 - first) / (written[-1] - written[first])
    times, seconds = zip(*samples, strict=True)
    spent = np.interp([written[first], written[-1]], list(times), list(seconds))
    work = float(spent[1] - spent[0]) / (len(written) - 1 - first)
    return Batch(
        written[0] - began, rate, work, ended - written[-1], ended - began, peak.size, size
    )


@contextmanager
def processor_times(root: int) -> Iterator[list[tuple[float, float]]]:
    """Sample the clock and a process tree's processor time in a thread while a block runs."""
    samples, ended = [(time.time(), 0.0)], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            samples.append((time.time(), tree_seconds(root)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def batches() -> None:
    """Measure `segcal segment --ray local` with 1, 2 and 4 workers beside the plain command."""
    parser = argparse.ArgumentParser(description=batches.__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--images", type=int, default=200, help="shifted copies of the image")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    engines: list[int | None] = [None, *options.workers]
    done: dict[int | None, list[Batch]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as name:
        paths = [Path(name) / f"{number:04}.jpg" for number in range(options.images)]
        for path, data in zip(paths, shifted(options.image, options.images), strict=True):
            path.write_bytes(data)
        for number in range(options.rounds):
            first = number % len(engines)  # every round begins with another engine
            for engine in engines[first:] + engines[:first]:
                print_progress(f"round {number + 1}: {engine or 'plain'}")
                done[engine].append(segment(paths, options.model, engine))
    print(f"{describe_machine()}\n\n{options.images} images\n")
    print(table(BATCH_HEADS, [batch_row(engine, done) for engine in engines]))
    driver, size = driver_seconds(), statistics.mean(one.size for one in done[None])
    worker = 1 / statistics.median(one.work for one in done[options.workers[0]])
    print(f"\nthe driver takes {1000 * driver:.2f} ms an image, {size / 1000:.0f} kB\n")
    print(reckon(worker, driver, int(size)))


def batch_row(engine: int | None, done: dict[int | None, list[Batch]]) -> list[str]:
    """Return the medians of an engine, and of its ratios to the plain command by round."""
    own, plain = done[engine], done[None]
    ratios = [one.rate / other.rate for one, other in zip(own, plain, strict=True)]
    overheads = [1000 * (one.work - other.work) for one, other in zip(own, plain, strict=True)]
    return [
        "plain" if engine is None else "Ray Data",
        str(engine or 1),
        f"{statistics.median(one.startup for one in own):.1f}",
        f"{statistics.median(one.rate for one in own):.1f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{1000 * statistics.median(one.work for one in own):.1f}",
        "" if engine is None else f"{statistics.median(overheads):.1f}",
        f"{statistics.median(one.end for one in own):.1f}",
        f"{statistics.median(one.whole for one in own):.1f}",
        f"{statistics.median(one.peak for one in own) / MIB:.0f}",
    ]


def driver_seconds() -> float:
    """Measure the driver's time for an image, with actors that do nothing."""
    seconds = []
    with cluster("local", CORES):
        for items in NO_OPERATIONS:
            began = time.perf_counter()
            for _ in map_on_actors(lambda: int, range(items), 8):
                pass
            seconds.append(time.perf_counter() - began)
    return (seconds[1] - seconds[0]) / (NO_OPERATIONS[1] - NO_OPERATIONS[0])


def reckon(worker: float, driver: float, size: int) -> str:
    """Return a table of what more cores would do.

    `worker` is in images/s of a core, `driver` in seconds of the driver for an image, `size` in
    bytes of an image with its results.
    """
    rows = []
    for cores in RECKONED_CORES:
        rate = min(cores * worker, 1 / driver)
        rows.append([
            str(cores), f"{cores * worker:.0f}", f"{1 / driver:.0f}", f"{rate * size / 1e6:.0f}",
            f"{10_000_000 / rate / 3600:.1f}",
        ])  # fmt: skip
    return table(RECKONED_HEADS, rows)


def serving() -> None:
    """Measure one replica of Ray Serve beside the plain server, of one thread each, alternately."""
    parser = argparse.ArgumentParser(description=serving.__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    artifacts = ROOT / "calibration_artifacts"
    settings = {"DEFAULT_MODEL": options.model, "ARTIFACTS_DIR": artifacts, "THREADS": 1}
    environment = {f"SEGCAL_{name}": str(value) for name, value in settings.items()}
    environment |= {"SEGCAL_MODELS_DIR": str(ROOT / "models"), "RAY_USAGE_STATS_ENABLED": "0"}
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as name,
        own_server(ROOT / "models", **settings) as plain,
        started(
            [sys.executable, "-m", "benchmarks.serving.servers.ray_service", str(port)],
            environment, log := Path(name) / "ray.log",
        ) as process,
    ):  # fmt: skip
        ray = Server(port, process.pid)
        startup = wait_until(
            lambda: urllib.request.urlopen(f"{ray.url}/readyz").close(), process, log
        )
        rows = [compare(plain, ray, clients, options) for clients in options.clients]
        memory = [tree_bytes(server.pid) / MIB for server in (plain, ray)]
    print(f"{describe_machine()}\n\n{table(SERVE_HEADS, rows)}\n")
    print(
        f"Ray Serve was ready after {startup:.1f} s; memory (PSS): {memory[0]:.0f} MiB and "
        f"{memory[1]:.0f} MiB"
    )


def compare(plain: Server, ray: Server, clients: int, options: argparse.Namespace) -> list[str]:
    """Measure one number of clients; return medians, and the median of the rounds' ratios."""
    request = form_request(PATH, options.image.read_bytes())
    for server in (plain, ray):  # warm
        run_window(server.port, request, clients, options.seconds)
    windows: list[list[Window]] = []
    work: list[list[float]] = [[], []]  # core ms of an answer, by server
    for _ in range(options.rounds):
        windows.append([])
        for server, costs in zip((plain, ray), work, strict=True):
            before = tree_seconds(server.pid)
            window = run_window(server.port, request, clients, options.seconds)
            costs.append(1000 * (tree_seconds(server.pid) - before) / len(window.latencies))
            windows[-1].append(window)
    ratios = [two.throughput / one.throughput for one, two in windows]
    by_server = list(zip(*windows, strict=True))
    times = [[1000 * t for window in each for t in window.latencies] for each in by_server]
    return [
        str(clients),
        *(f"{statistics.median(window.throughput for window in each):.1f}" for each in by_server),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(f"{statistics.median(each):.1f}" for each in work),
        *(f"{percentile(each, 0.5):.0f}" for each in times),
        str(sum(window.errors for pair in windows for window in pair)),
    ]


def tree_seconds(root: int) -> float:
    """Return the processor time of the processes of a tree that run."""
    total = 0.0
    for pid in process_tree(root):
        with suppress(OSError):  # the process may have ended
            total += cpu_seconds(pid)
    return total


COMMANDS = {"batches": batches, "serving": serving}

if __name__ == "__main__":
    run_command("benchmarks.cluster", COMMANDS)
