"""Compare this service with other servers on the same network, in interleaved rounds.

Each server's faster layout (one process of two threads or two of one) is chosen by a pilot window.
In every round each server is started, warmed up, measured at each number of clients and ended, so
that only one exists at a time; every round begins with another server. Answers per second are
medians over rounds, latencies percentiles over the requests of all rounds.
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import (
    BUNDLED,
    CORES,
    MIB,
    ROOT,
    Request,
    Server,
    Window,
    call_in_process,
    describe_machine,
    form_request,
    free_port,
    peak_memory,
    percentile,
    print_progress,
    put_table,
    run_window,
    send_request,
    started,
    table,
    wait_until,
)
from benchmarks.serving.models import SHAPES, Workspace, prepare
from benchmarks.serving.servers import ENVIRONMENT, FLOORS, Plan, floor

Layout = tuple[int, int]  # processes, and threads in each
OWN_LAYOUT = (1, CORES)
LAYOUTS = (OWN_LAYOUT, (CORES, 1))
BENTOML_PYTHON = Path(sys.prefix + "-bentoml") / "bin/python"
REFERENCE = "fastapi"
LEAST_AGREEMENT = 0.999
PILOT_CLIENTS = 4
PATH = "/segment?include=mask,confidence"
HEADS = ("server", "clients", "answers/s", "p50 ms", "p99 ms", "peak MiB", "errors")
TELEMETRY_OFF = {
    "BENTOML_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "LIT_SERVE_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True)
class Contender:
    """A measured server.

    `app` is a module of `benchmarks.serving.servers`, None for this service, which serves the
    shape's model or `model`. With `raw` the request's body is the image itself.
    """

    name: str
    title: str
    app: str | None = None
    path: str = "/segment"
    raw: bool = False
    png_level: int = -1
    model: str | None = None

    def command(self, port: int) -> list[str]:
        """Return the command line; the others read their port from the plan."""
        if self.app is None:
            return [sys.executable, "-m", "app", "serve", "--port", str(port)]
        module = f"benchmarks.serving.servers.{self.app}"
        if self.app == "bentoml_app":
            command = [str(BENTOML_PYTHON), "-m", "bentoml", "serve", f"{module}:Segmentation"]
            return [*command, "--port", str(port), "--host", "127.0.0.1"]
        return [sys.executable, "-m", module]

    def request(self, image: bytes) -> Request:
        """Return the request that is repeated."""
        if self.raw:
            return Request(self.path, {"Content-Type": "image/jpeg"}, image)
        return form_request(self.path, image)

    def environment(self, files: Workspace, layout: Layout, port: int) -> dict[str, str]:
        """Return the configuration of model, port and threads."""
        if self.app is None:
            return {
                "SEGCAL_MODELS_DIR": str(files.models),
                "SEGCAL_ARTIFACTS_DIR": str(files.artifacts),
                "SEGCAL_DEFAULT_MODEL": self.model or files.shape.model,
                "SEGCAL_THREADS": str(CORES),
            }
        plan = plan_of(files, layout, port, self.png_level)
        threads = {"OMP_NUM_THREADS": str(plan.threads), "PYTHONPATH": str(ROOT)}
        return {ENVIRONMENT: plan.to_json(), **threads, **TELEMETRY_OFF}


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("segcal", "this service", path=PATH),
        Contender("segcal-none", "this service, uncalibrated", path=f"{PATH}&calibrator=none"),
        Contender("segcal-int8", "this service, int8 backbone", path=PATH, model=f"{BUNDLED}-int8"),
        Contender("fastapi", "plain FastAPI", "plain_fastapi"),
        Contender("fastapi-png1", "plain FastAPI, fast PNGs", "plain_fastapi", png_level=1),
        Contender("litserve", "LitServe", "litserve_app"),
        Contender("bentoml", "BentoML", "bentoml_app"),
        Contender("ray", "Ray Serve", "ray_app"),
        Contender("mosec", "mosec", "mosec_app", raw=True),
    )
}


def plan_of(files: Workspace, layout: Layout, port: int, png_level: int = -1) -> Plan:
    """Return the configuration of the other servers' pipeline."""
    mean, std = files.shape.normalisation
    return Plan(str(files.model_file), mean, std, *layout, port, png_level)


def mask_of(body: bytes) -> NDArray[np.uint8]:
    """Return the mask [H,W] of an answer."""
    part = json.loads(body)["mask"]
    data = base64.b64decode(part["data"] if isinstance(part, dict) else part)
    return np.asarray(Image.open(io.BytesIO(data)))


@dataclass(frozen=True)
class TestResult:
    """One window and the server's peak memory in bytes."""

    clients: int
    window: Window
    peak_bytes: int


@dataclass
class Record:
    """All windows of one shape, by server."""

    title: str
    layouts: dict[str, Layout] = field(default_factory=dict)
    floors: dict[str, list[float]] = field(default_factory=dict)
    windows: dict[str, list[TestResult]] = field(default_factory=dict)
    agreement: float = 1.0

    def best_rates(self, server: str) -> list[float]:
        """Return answers per second at the best number of clients, by round."""
        windows = self.windows[server]
        step = len({measured.clients for measured in windows})
        return [
            max(measured.window.throughput for measured in windows[start : start + step])
            for start in range(0, len(windows), step)
        ]

    def latencies_ms(self, server: str, clients: int) -> list[float]:
        """Return the latencies of all rounds."""
        windows = [m.window for m in self.windows[server] if m.clients == clients]
        return [1000 * latency for window in windows for latency in window.latencies]


@contextmanager
def running(
    contender: Contender, files: Workspace, layout: Layout, folder: Path
) -> Iterator[tuple[Server, Request]]:
    """Run a server that has answered one request."""
    port, log = free_port(), folder / f"{contender.name}.log"
    request = contender.request(files.image_file.read_bytes())
    environment = contender.environment(files, layout, port)
    with started(contender.command(port), environment, log) as process:
        wait_until(lambda: send_request(port, request), process, log)
        yield Server(port, process.pid), request


class Comparison:
    """Measure the chosen servers on one shape."""

    def __init__(self, shape_name: str, options: argparse.Namespace) -> None:
        print_progress(f"{shape_name}: preparing")
        self.options = options
        self.folder: Path = options.folder
        self.files = prepare(SHAPES[shape_name], self.folder / shape_name)
        chosen = [CONTENDERS[name] for name in options.servers]
        self.contenders = [
            c for c in chosen if c.model is None or (self.files.models / c.model).is_dir()
        ]
        self.record = Record(self.files.shape.title)

    def run(self) -> Record:
        """Run pilots, then rounds."""
        reference = self.reference_mask()
        for contender in self.contenders:
            self.record.layouts[contender.name] = self.faster_layout(contender)
        for number in range(self.options.rounds):
            self.measure_floors()
            first = number % len(self.contenders)
            for contender in self.contenders[first:] + self.contenders[:first]:
                print_progress(f"{self.record.title}, round {number + 1}: {contender.name}")
                self.measure(contender, reference)
        return self.record

    def reference_mask(self) -> NDArray[np.uint8]:
        """Return the mask that all servers of the same network must return."""
        contender = CONTENDERS[REFERENCE]
        with running(contender, self.files, OWN_LAYOUT, self.folder) as (server, request):
            return mask_of(send_request(server.port, request))

    def faster_layout(self, contender: Contender) -> Layout:
        """Return the layout with more answers per second, unless one is given."""
        if contender.app is None:
            return OWN_LAYOUT
        if self.options.layout is not None:
            given: Layout = self.options.layout
            return given
        rates: dict[Layout, float] = {}
        for layout in LAYOUTS:
            with running(contender, self.files, layout, self.folder) as (server, request):
                run_window(server.port, request, PILOT_CLIENTS, self.options.warm)
                window = run_window(server.port, request, PILOT_CLIENTS, self.options.seconds)
            rates[layout] = window.throughput
        print_progress(f"pilot of {contender.name}: {rates}")
        return max(rates, key=lambda layout: rates[layout])

    def measure_floors(self) -> None:
        """Measure the loops without a server."""
        plan = plan_of(self.files, OWN_LAYOUT, 0).to_json()
        for name in FLOORS:
            arguments = (name, plan, str(self.files.image_file), self.options.seconds)
            rate = call_in_process(floor, *arguments, environment={"OMP_NUM_THREADS": "1"})
            self.record.floors.setdefault(name, []).append(rate)

    def measure(self, contender: Contender, reference: NDArray[np.uint8]) -> None:
        """Measure one server at each number of clients; raises SystemExit for a wrong mask."""
        measured = self.record.windows.setdefault(contender.name, [])
        layout = self.record.layouts[contender.name]
        with running(contender, self.files, layout, self.folder) as (server, request):
            agreement = float((mask_of(send_request(server.port, request)) == reference).mean())
            run_window(server.port, request, max(self.options.clients), self.options.warm)
            for clients in self.options.clients:
                with peak_memory(server.pid) as peak:
                    window = run_window(server.port, request, clients, self.options.seconds)
                measured.append(TestResult(clients, window, peak.size))
        if contender.model is not None:
            return
        self.record.agreement = min(self.record.agreement, agreement)
        if agreement < LEAST_AGREEMENT:
            raise SystemExit(
                f"{contender.name}: expected the same mask as {REFERENCE} on "
                f"{LEAST_AGREEMENT:.1%} of the pixels, got {agreement:.3%}"
            )


def report(record: Record) -> str:
    """Return one shape's table, the loops without a server first, and a line of ratios."""
    rows = [
        [f"floor: {name}", "", f"{median(rates):.1f}", "", "", "", ""]
        for name, rates in record.floors.items()
    ]
    rows += [
        row(record, server, clients)
        for server, windows in record.windows.items()
        for clients in sorted({measured.clients for measured in windows})
    ]
    return f"### {record.title}\n\n{table(HEADS, rows)}\n\n{ratios(record)}"


def row(record: Record, server: str, clients: int) -> list[str]:
    """Return a server's throughput, latencies and memory at one number of clients."""
    measured = [m for m in record.windows[server] if m.clients == clients]
    latencies = record.latencies_ms(server, clients)
    workers, threads = record.layouts[server]
    return [
        f"{CONTENDERS[server].title} ({workers}x{threads})",
        str(clients),
        f"{median(m.window.throughput for m in measured):.1f}",
        f"{percentile(latencies, 0.5):.0f}",
        f"{percentile(latencies, 0.99):.0f}",
        f"{max(m.peak_bytes for m in measured) / MIB:.0f}",
        str(sum(m.window.errors for m in measured)),
    ]


def ratio(rates: list[float], others: list[float]) -> float:
    """Return the median of the ratios within each round."""
    return median(one / other for one, other in zip(rates, others, strict=True))


def ratios(record: Record) -> str:
    """Return this service's ratios to the loops, to the best other server and to itself."""
    best = {server: record.best_rates(server) for server in record.windows}
    sentences = own_ratios(record, best) if "segcal" in best else []
    clients = max(m.window.client_cores for ms in record.windows.values() for m in ms)
    sentences.append(
        f"masks of the same network agree on {record.agreement:.3%} of the pixels or more"
    )
    sentences.append(f"the clients used at most {clients:.2f} of a core")
    return (
        "This service (ratios within a round, median of rounds, each server at its best number of "
        f"clients): {'; '.join(sentences)}."
    )


def own_ratios(record: Record, best: dict[str, list[float]]) -> list[str]:
    """Return this service's ratios."""
    own = best["segcal"]
    loops = [rates for name, rates in record.floors.items() if name.startswith("session")]
    fastest = [max(rates) for rates in zip(*loops, strict=True)]
    sentences = [f"best rate {ratio(own, fastest):.2f} of the best bare session loop"]
    others = {name: rates for name, rates in best.items() if CONTENDERS[name].app is not None}
    if others:
        peer = max(others, key=lambda name: median(others[name]))
        title = CONTENDERS[peer].title
        sentences.append(f"{ratio(own, others[peer]):.2f} times {title}, the best other server")
        if "segcal-int8" in best:
            quantised = ratio(best["segcal-int8"], others[peer])
            sentences.append(f"{quantised:.2f} times that with the int8 backbone")
    if "segcal-none" in best:
        cost = ratio(best["segcal-none"], own)
        sentences.append(f"calibration costs {cost:.3f} times the uncalibrated answer")
    clients = max(measured.clients for measured in record.windows["segcal"])
    latencies = record.latencies_ms("segcal", clients)
    spread = percentile(latencies, 0.99) / percentile(latencies, 0.5)
    return [*sentences, f"p99 at {clients} clients {spread:.2f} times p50"]


def read_layout(text: str) -> Layout:
    """Parse PROCESSESxTHREADS."""
    processes, _, threads = text.partition("x")
    return int(processes), int(threads)


def compare() -> None:
    """Compare this service with other servers on the same network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--servers", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each window")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before the windows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layout", type=read_layout, help="1x2 or 2x1 for all; default: a pilot")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/benchmarks")
    parser.add_argument("--docs", type=Path, help="a Markdown file to put the table into")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    records = [Comparison(name, options).run() for name in options.shapes]
    text = "\n\n".join([describe_machine(), *map(report, records)]) + "\n"
    print(text)
    if options.docs is not None:
        put_table(options.docs, "serving", text)
