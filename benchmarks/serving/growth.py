"""Measure how time and memory grow: with classes, pixels, clients, batches and threads.

`growth` serves networks of one convolution of stride 4, so that the rest of an answer dominates.
Each setting has a server of its own once a round; memory is the server's peak above its memory
after a small image. Batches and `sessions` run the bundled network without a server.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from app.inference.backbone import open_backbone
from benchmarks.harness import (
    BUNDLED,
    CORES,
    MIB,
    ROOT,
    call_in_process,
    describe_machine,
    form_request,
    own_server,
    peak_memory,
    print_progress,
    process_bytes,
    put_table,
    run_window,
    send_request,
    table,
    tree_bytes,
)
from benchmarks.serving.models import example_image, write_stride_four
from benchmarks.serving.servers import open_session, steps_per_second

CLASSES = (2, 11, 19, 64, 150, 171)
MEGAPIXELS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
CLIENTS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8)
SESSION_BATCHES = (1, 2, 4)
ASPECT = 4 / 3
BATCH_SIZE = (480, 352)  # width, height
PATH = "/segment?include=mask,confidence&calibrator=none"
BUNDLED_FILE = ROOT / f"models/{BUNDLED}/model.onnx"


@dataclass(frozen=True)
class Setting:
    """One point of a curve; with `batch`, of the bundled network without a server."""

    classes: int = 19
    megapixels: float = 1.0
    clients: int = 1
    batch: int | None = None


CURVES: Mapping[str, Sequence[Setting]] = {
    "classes": [Setting(classes=count) for count in CLASSES],
    "megapixels": [Setting(megapixels=size) for size in MEGAPIXELS],
    "clients": [Setting(clients=count) for count in CLIENTS],
    "batch": [Setting(batch=size) for size in BATCHES],
}


@dataclass
class Point:
    """Results of each round: milliseconds an answer, answers per second, MiB above idle."""

    milliseconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)

    def medians(self) -> list[float]:
        """Return the medians over rounds."""
        return [statistics.median(v) for v in (self.milliseconds, self.rates, self.mebibytes)]


def image_of(megapixels: float) -> bytes:
    """Resize the example to so many million pixels, 4:3, as JPEG."""
    height = round((megapixels * 1e6 / ASPECT) ** 0.5)
    return example_image((round(height * ASPECT), height))


def measure(setting: Setting, point: Point, seconds: float, folder: Path) -> None:
    """Measure one setting once."""
    if setting.batch is None:
        found = measure_server(setting, seconds, folder)
    else:
        found = call_in_process(measure_batch, setting.batch, seconds)
    point.milliseconds.append(found[0])
    point.rates.append(found[1])
    point.mebibytes.append(found[2])
    print_progress(f"{setting}: {found[0]:.0f} ms, {found[2]:.0f} MiB")


def measure_server(setting: Setting, seconds: float, folder: Path) -> Sequence[float]:
    """Measure a server of its own, whose memory no earlier image has increased."""
    models = folder / f"models-{setting.classes}"
    write_stride_four(models / "stride-four", setting.classes)
    small = form_request(PATH, image_of(min(MEGAPIXELS) / 4))
    request = form_request(PATH, image_of(setting.megapixels))
    with own_server(models, RESULT_BYTES=0) as server:  # kept results have a limit of their own
        send_request(server.port, small)
        idle = tree_bytes(server.pid)
        with peak_memory(server.pid) as peak:
            send_request(server.port, request)
            window = run_window(server.port, request, setting.clients, seconds)
    if window.errors:
        raise SystemExit(f"{setting}: expected answers, got {window.errors} errors")
    latency = 1000 * statistics.median(window.latencies)
    return latency, window.throughput, (peak.size - idle) / MIB


def measure_batch(size: int, seconds: float) -> list[float]:
    """Measure a batch on the bundled network: milliseconds, images per second, MiB above idle."""
    backbone = open_backbone(BUNDLED_FILE, "cpu", CORES)
    width, height = BATCH_SIZE
    backbone(np.zeros((1, 3, 64, 64), np.float32))
    idle = process_bytes(os.getpid(), "VmHWM")
    images = np.random.default_rng(0).random((size, 3, height, width), np.float32)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        started = time.perf_counter()
        backbone(images)
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    return [1000 * median, size / median, (process_bytes(os.getpid(), "VmHWM") - idle) / MIB]


def report(points: Mapping[Setting, Point], curves: Sequence[str]) -> str:
    """Return a table for each curve."""
    parts = [describe_machine()]
    for name in curves:
        rows = [
            [f"{getattr(setting, name):g}", *(f"{v:.1f}" for v in points[setting].medians())]
            for setting in CURVES[name]
        ]
        parts.append(table([name, "ms an answer", "answers/s", "MiB above idle"], rows))
    return "\n\n".join(parts) + "\n"


def draw(points: Mapping[Setting, Point], curves: Sequence[str], file: Path) -> None:
    """Draw milliseconds above and memory below, a column for each curve."""
    mpl.use("agg")
    size = (3 * len(curves), 5)
    figure, axes = plt.subplots(2, len(curves), figsize=size, layout="constrained", squeeze=False)
    for column, name in enumerate(curves):
        x = [getattr(setting, name) for setting in CURVES[name]]
        medians = [points[setting].medians() for setting in CURVES[name]]
        for line, (index, label) in enumerate(((0, "ms an answer"), (2, "MiB"))):
            axes[line, column].plot(x, [values[index] for values in medians], "o-", markersize=3)
            axes[line, column].set(ylim=(0, None), xlabel=name, ylabel="" if column else label)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def growth() -> None:
    """Measure time and memory against classes, pixels, clients and batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/growth")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--figure", type=Path, help="default: growth.svg in the folder")
    parser.add_argument("--docs", type=Path, help="a Markdown file to put the tables into")
    options = parser.parse_args()
    points = {setting: Point() for name in options.curves for setting in CURVES[name]}
    for _ in range(options.rounds):
        for setting, point in points.items():
            measure(setting, point, options.seconds, options.folder)
    text = report(points, options.curves)
    print(text)
    draw(points, options.curves, options.figure or options.folder / "growth.svg")
    if options.docs is not None:
        put_table(options.docs, "growth", text)


@dataclass(frozen=True)
class SessionOptions:
    """Options of an ONNX Runtime session."""

    threads: int
    spinning: bool = True
    arena: bool = True

    def cells(self) -> list[str]:
        """Return the options as cells of a table."""
        flags = ("yes" if value else "no" for value in (self.spinning, self.arena))
        return [str(self.threads), *flags]


SESSIONS = (
    SessionOptions(1),
    SessionOptions(1, arena=False),
    SessionOptions(CORES),
    SessionOptions(CORES, spinning=False),
    SessionOptions(CORES, arena=False),
)


def sessions() -> None:
    """Measure threads, spinning, memory arena, callers and batches of a session."""
    parser = argparse.ArgumentParser(description=sessions.__doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED_FILE)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("W", "H"))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    opened = {
        each: open_session(
            str(options.model), each.threads, spinning=each.spinning, arena=each.arena
        )
        for each in SESSIONS
    }
    name = next(iter(opened.values())).get_inputs()[0].name
    shape = (max(SESSION_BATCHES), 3, *options.size[::-1])
    images = np.random.default_rng(1).random(shape, np.float32)
    rates: dict[tuple[SessionOptions, int, int], list[float]] = {}
    for _ in range(options.rounds):
        for each, callers, batch in itertools.product(SESSIONS, (1, 2), SESSION_BATCHES):
            if batch > 1 and not (each.spinning and each.arena):
                continue
            step: Callable[[], object] = partial(opened[each].run, None, {name: images[:batch]})
            found = batch * steps_per_second([step] * callers, options.seconds)
            rates.setdefault((each, callers, batch), []).append(found)
    rows = [
        [*each.cells(), str(callers), str(batch), f"{statistics.median(values):.1f}"]
        for (each, callers, batch), values in rates.items()
    ]
    print(table(["threads", "spinning", "arena", "callers", "batch", "images/s"], rows))
