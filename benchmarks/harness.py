"""Shared harness: machine, timing, processes, the service under test, HTTP load, Markdown.

It imports numpy and Pillow only, so that the environments of all measured servers can import it.
"""

import argparse
import http.client
import importlib
import io
import json
import math
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "camvid-street"
EXAMPLE = ROOT / "examples/street.jpg"
CORES = 2
MIB = 1 << 20
PACKAGES = (
    "onnxruntime-gpu", "torch", "numpy", "pillow", "fastapi", "uvicorn", "litserve", "ray", "mosec",
)  # fmt: skip
TOKEN = "a token for benchmarks"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
START_S = 180.0
ANSWER_S = 120.0
GRACE_S = 20.0
SAMPLE_S = 1.0  # one sample of a process tree's memory takes 20 ms of a core


def print_progress(text: str) -> None:
    """Write progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def run_command(package: str, commands: Mapping[str, Callable[[], None]]) -> None:
    """Run the subcommand named first on the command line; it parses the remaining arguments."""
    lines = [
        f"  {name:12} {(work.__doc__ or '').splitlines()[0]}" for name, work in commands.items()
    ]
    program = f"python -m {package}"
    parser = argparse.ArgumentParser(
        program, description="\n".join(lines), formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("measurement", choices=commands)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="--help lists them")
    chosen = parser.parse_args()
    sys.argv = [f"{program} {chosen.measurement}", *chosen.options]
    # A SIGTERM must end the servers that were started as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    commands[chosen.measurement]()


def describe_machine() -> str:
    """Return processor, cores, memory, system and package versions as one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    facts = {
        "processor": cpu[1].strip() if cpu else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    return "; ".join(f"{name} {value}" for name, value in facts.items()) + "."


def synthetic_image(height: int, width: int, seed: int = 0, grain: float = 0.0) -> bytes:
    """Encode smooth random patches, with Gaussian noise of std `grain` (0..255), as JPEG."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 255, (height // 40 + 1, width // 40 + 1, 3), np.uint8)
    image = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    if grain:
        noisy = np.asarray(image) + rng.normal(0, grain, (height, width, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def median_seconds(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return each work's median seconds over `rounds` interleaved rounds after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the smallest value that `fraction` of the values do not exceed; NaN without values."""
    return float(np.quantile(values, fraction, method="inverted_cdf")) if values else math.nan


def call_in_process(
    function: Callable[..., Any],
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Any:  # noqa: ANN401 - whatever the function returns, through JSON
    """Call a module's function in a new process; arguments and result go through JSON.

    Raises subprocess.CalledProcessError and subprocess.TimeoutExpired.
    """
    module = function.__module__
    if module == "__main__":
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    code = "from benchmarks.harness import call_named; call_named()"
    done = subprocess.run(
        [sys.executable, "-c", code, module, function.__name__, json.dumps(arguments)],
        env={**os.environ, **(environment or {})}, cwd=ROOT, check=True, capture_output=True,
        text=True, timeout=timeout_s,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def call_named() -> None:
    """Run the function that `call_in_process` named and print its result as JSON."""
    module, name, arguments = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    print("\n" + json.dumps(function(*json.loads(arguments))))


def process_tree(root: int) -> list[int]:
    """Return a process, its descendants, and the orphans of its session."""
    parents: dict[int, int] = {}
    found = {root}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may have ended
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(stat[1])
            if int(stat[3]) == root:
                found.add(int(entry.name))
    while added := {child for child, parent in parents.items() if parent in found} - found:
        found |= added
    return sorted(found)


def is_alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def tree_bytes(root: int) -> int:
    """Return a process tree's memory; shared pages count once (PSS)."""
    total = 0
    for process in process_tree(root):
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def process_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return a memory field of /proc/PID/status in bytes; `VmHWM` is the peak of `VmRSS`."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"expected {field} of process {pid}, got none")
    return int(found[1]) * 1024


@dataclass
class Peak:
    """Largest memory seen so far, in bytes."""

    size: int = 0


@contextmanager
def peak_memory(root: int) -> Iterator[Peak]:
    """Sample a process tree's memory in a thread while a block runs."""
    peak, ended = Peak(), threading.Event()

    def sample() -> None:
        while True:
            peak.size = max(peak.size, tree_bytes(root))
            if ended.wait(SAMPLE_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


@contextmanager
def started(
    command: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command with its output in a file, and end its process tree afterwards."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=ROOT, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        end_tree(process)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a process and, after 20 s, SIGKILL to the rest of its tree."""
    members = process_tree(process.pid)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while any(map(is_alive, members)) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.05)
    for member in members:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return an unused TCP port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until(
    succeeds: Callable[[], object], process: subprocess.Popen[bytes], log: Path
) -> float:
    """Call until no connection error is raised; return the seconds. Raises RuntimeError."""
    began = time.perf_counter()
    while time.perf_counter() - began < START_S and process.poll() is None:
        try:
            succeeds()
            return time.perf_counter() - began
        except (OSError, http.client.HTTPException, RuntimeError):
            time.sleep(0.05)
    raise RuntimeError(f"expected a server that answers, got: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Return the address."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def own_server(
    models: Path, options: Sequence[str] = (), /, **settings: str | int | Path
) -> Iterator[Server]:
    """Run `segcal serve` with SEGCAL_ settings and an empty calibrator folder until ready."""
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), *options]
    with tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as name:
        chosen = {"MODELS_DIR": models, "ARTIFACTS_DIR": name, "ADMIN_TOKEN": TOKEN, **settings}
        environment = {f"SEGCAL_{key}": str(value) for key, value in chosen.items()}
        log = Path(name) / "server.log"
        with started(command, environment, log) as process:
            server = Server(port, process.pid)
            wait_until(lambda: urllib.request.urlopen(f"{server.url}/readyz").close(), process, log)
            yield server


@dataclass(frozen=True)
class Request:
    """One prepared POST request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Window:
    """Latencies in seconds of one measurement; `seconds` last until the last answer.

    `client_cores` is the mean number of cores that the clients themselves used.
    """

    seconds: float
    latencies: tuple[float, ...]
    errors: int
    client_cores: float

    @property
    def throughput(self) -> float:
        """Return successful answers per second."""
        return len(self.latencies) / self.seconds


def form_request(path: str, image: bytes) -> Request:
    """Build a multipart form with a JPEG in its field `image`."""
    boundary = "segcal-benchmark"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return Request(path, {"Content-Type": f"multipart/form-data; boundary={boundary}"}, body)


def exchange(connection: http.client.HTTPConnection, request: Request) -> bytes:
    """Send a request and return the answer's body; raises RuntimeError for a status but 200."""
    connection.request("POST", request.path, request.body, request.headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != http.client.OK:
        raise RuntimeError(f"expected 200, got {answer.status}: {body[:300]!r}")
    return body


def send_request(port: int, request: Request, timeout_s: float = ANSWER_S) -> bytes:
    """Send one request on a new connection."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)) as connection:
        return exchange(connection, request)


def run_window(port: int, request: Request, clients: int, seconds: float) -> Window:
    """Run closed-loop clients, a thread and a connection each, for `seconds`."""
    latencies: list[float] = []
    errors: list[Exception] = []
    ready = threading.Barrier(clients + 1)
    started_at = 0.0

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        ready.wait()
        while time.perf_counter() < started_at + seconds:
            sent = time.perf_counter()
            try:
                exchange(connection, request)
                latencies.append(time.perf_counter() - sent)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                errors.append(error)
                connection.close()
                time.sleep(0.05)  # without it a server that rejects at once is flooded
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    before = time.process_time()
    started_at = time.perf_counter()
    ready.wait()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started_at
    spent = time.process_time() - before
    return Window(elapsed, tuple(latencies), len(errors), spent / elapsed)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its first column left-aligned and the others right-aligned."""
    rule = "|".join(["---", *["---:"] * (len(heads) - 1)])
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def put_table(file: Path, name: str, text: str) -> None:
    """Replace the text between `<!-- NAME -->` and `<!-- /NAME -->` in a Markdown file."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = file.read_text().partition(opening)
    _, ends, after = rest.partition(closing)
    if not (found and ends):
        raise SystemExit(f"expected {opening} and {closing} in {file}, got none")
    file.write_text(f"{before}{opening}\n{text}{closing}{after}")
