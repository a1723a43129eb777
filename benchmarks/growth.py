"""How an answer's time and memory grow: with classes, pixels, clients at once, and in a batch.

`python -m benchmarks.growth` serves networks of one convolution of stride 4 (and random weights),
so that what follows the network is what is measured: K in 2..171, images of 0.2 to 8 million
pixels, and 1 to 32 clients. Each setting has a service of its own once a round, and the table
holds medians over rounds. Memory is the service's peak above what it held when it had answered a
small image. The service makes batches on a GPU only; what they would gain on a CPU is measured on
the bundled network alone, without a server.
"""

import argparse
import io
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from benchmarks.load import ask_once, form_request, run_window, wait_until
from benchmarks.machine import machine
from benchmarks.processes import PeakMemory, resident_bytes, started, tree
from benchmarks.serving import START_TIMEOUT_S, free_port, say
from benchmarks.shapes import BUNDLED, ROOT
from benchmarks.stride_four import write_model
from benchmarks.tables import put_table

CLASSES = (2, 11, 19, 64, 150, 171)
MEGAPIXELS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
CLIENTS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8)
USUAL_CLASSES, USUAL_MEGAPIXELS, USUAL_CLIENTS = 19, 1.0, 1
ASPECT = 4 / 3
PATH = "/segment?include=mask,confidence&calibrator=none"


@dataclass(frozen=True)
class Setting:
    """One point of a curve."""

    classes: int = USUAL_CLASSES
    megapixels: float = USUAL_MEGAPIXELS
    clients: int = USUAL_CLIENTS
    batch: int | None = None  # where set, of the bundled network alone


@dataclass
class Point:
    """What was measured: median milliseconds an answer, answers a second, MiB above idle."""

    milliseconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)


CURVES: dict[str, list[Setting]] = {
    "classes": [Setting(classes=k) for k in CLASSES],
    "megapixels": [Setting(megapixels=size) for size in MEGAPIXELS],
    "clients": [Setting(clients=count) for count in CLIENTS],
    "batch": [Setting(batch=size) for size in BATCHES],
}


def image(megapixels: float) -> bytes:
    """Resize the example to so many millions of pixels, 4:3, as a JPEG."""
    height = round((megapixels * 1e6 / ASPECT) ** 0.5)
    buffer = io.BytesIO()
    with Image.open(ROOT / "examples/street.jpg") as example:
        resized = example.convert("RGB").resize((round(height * ASPECT), height))
        resized.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(setting: Setting, point: Point, seconds: float, folder: Path) -> None:
    """Measure one setting."""
    if setting.batch is None:
        found = measure_service(setting, seconds, folder)
    else:
        found = measure_batch(setting.batch, seconds)
    for values, value in zip(
        (point.milliseconds, point.rates, point.mebibytes), found, strict=True
    ):
        values.append(value)
    say(f"{setting}: {found[0]:.0f} ms, {found[2]:.0f} MiB")


def measure_batch(size: int, seconds: float) -> Sequence[float]:
    """Measure the network alone in a process of its own."""
    model = ROOT / f"models/{BUNDLED}/model.onnx"
    command = [sys.executable, "-m", "benchmarks.batches", str(model), f"--batch={size}"]
    done = subprocess.run(
        [*command, f"--seconds={seconds}"], check=True, stdout=subprocess.PIPE, text=True
    )
    found: list[float] = json.loads(done.stdout)
    return found


def measure_service(setting: Setting, seconds: float, folder: Path) -> Sequence[float]:
    """Measure a service of its own, whose memory no earlier image has grown."""
    models = folder / f"models-{setting.classes}"
    write_model(models / "stride-four", setting.classes)
    port = free_port()
    environment = {
        "SEGCAL_MODELS_DIR": str(models),
        "SEGCAL_ARTIFACTS_DIR": str(folder / "calibrators"),
        "SEGCAL_RESULT_BYTES": "0",  # kept results are a budget, not growth
    }
    small = form_request(PATH, image(min(MEGAPIXELS) / 4))
    request = form_request(PATH, image(setting.megapixels))
    command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
    with started(command, environment, folder / "service.log") as process:
        wait_until(lambda: bool(ask_once(port, small)), START_TIMEOUT_S)
        idle = resident_bytes(tree(process.pid))
        with PeakMemory(process.pid) as memory:
            ask_once(port, request)
            window = run_window(port, request, setting.clients, seconds)
    if window.errors:
        raise SystemExit(f"{setting}: expected answers, got {window.errors} errors")
    latency = 1000 * statistics.median(window.latencies)
    return latency, window.throughput, (memory.peak - idle) / 2**20


def table(points: dict[Setting, Point], curves: Sequence[str]) -> str:
    """Write one table a curve."""
    facts = "; ".join(f"{name} {value}" for name, value in machine().items())
    parts = [f"{facts}."]
    for name in curves:
        lines = [f"| {name} | ms an answer | answers/s | MiB above idle |", "|---:|---:|---:|---:|"]
        for setting in CURVES[name]:
            point = points[setting]
            values = (point.milliseconds, point.rates, point.mebibytes)
            row = [f"{getattr(setting, name):g}", *(f"{np.median(v):.1f}" for v in values)]
            lines.append(f"| {' | '.join(row)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def draw(points: dict[Setting, Point], curves: Sequence[str], file: Path) -> None:
    """Draw time above, memory below, a column for each curve."""
    mpl.use("agg")
    size = (3 * len(curves), 5)
    figure, axes = plt.subplots(2, len(curves), figsize=size, layout="constrained", squeeze=False)
    for column, name in enumerate(curves):
        settings = CURVES[name]
        across = [getattr(setting, name) for setting in settings]
        times = [float(np.median(points[setting].milliseconds)) for setting in settings]
        memory = [float(np.median(points[setting].mebibytes)) for setting in settings]
        for row, (values, label) in enumerate(((times, "ms an answer"), (memory, "MiB"))):
            axes[row, column].plot(across, values, marker="o", markersize=3)
            axes[row, column].set(ylim=(0, None), xlabel=name, ylabel="" if column else label)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/growth")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--figure", type=Path, help="default: growth.svg in the folder")
    parser.add_argument("--docs", type=Path, help="a Markdown file to put the tables into")
    options = parser.parse_args(arguments)
    points = {setting: Point() for name in options.curves for setting in CURVES[name]}
    for _ in range(options.rounds):
        for setting, point in points.items():
            measure(setting, point, options.seconds, options.folder)
    text = table(points, options.curves)
    print(text)
    draw(points, options.curves, options.figure or options.folder / "growth.svg")
    if options.docs is not None:
        put_table(options.docs, "growth", text)


if __name__ == "__main__":
    main()
