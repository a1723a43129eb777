"""Measure several server processes beside one, and how long a request holds Python's lock."""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import (
    EXAMPLE,
    MIB,
    ROOT,
    Request,
    Server,
    Window,
    describe_machine,
    form_request,
    own_server,
    percentile,
    run_window,
    table,
    tree_bytes,
)

MODEL = "camvid-street-int8"
PATH = "/segment?include=mask,confidence"
COUNTS = (1, 2)  # of processes
CORES = (2, 8, 16, 64)
QUEUE_LIMIT = 64
SAMPLES_PER_S = 200
LOAD = 0.7  # of the lock, at which the wait for it is 1.2 times the time that it is held (M/D/1)


def parse_options(description: str | None) -> argparse.Namespace:
    """Parse the options of both measurements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> dict[str, str | int | Path]:
    """Return the settings of the measured servers."""
    return {
        "DEFAULT_MODEL": options.model,
        "ARTIFACTS_DIR": ROOT / "calibration_artifacts",
        "QUEUE_LIMIT": QUEUE_LIMIT,
    }


def wait_for_all(server: Server) -> None:
    """Wait until all processes serve: each publishes its part of the limit of the queue."""
    while f"segcal_queue_limit {QUEUE_LIMIT:.1f}" not in (
        urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    ):
        time.sleep(0.2)


def processes() -> None:
    """Measure throughput and latency with one and with two server processes, alternately."""
    options = parse_options(processes.__doc__)
    request = form_request(PATH, options.image.read_bytes())
    with ExitStack() as stack:
        servers = {
            count: stack.enter_context(
                own_server(options.models, ("--processes", str(count)), **settings_of(options))
            )
            for count in COUNTS
        }
        for server in servers.values():
            wait_for_all(server)
            run_window(server.port, request, 16, options.seconds)  # warm
        rows = [compare(servers, request, clients, options) for clients in options.clients]
        memory = [f"{tree_bytes(server.pid) / MIB:.0f} MiB" for server in servers.values()]
    heads = (
        "clients", "1 process, answers/s", "2 processes", "ratio", "1 process, p50 ms",
        "2 processes", "p99 ms", "2 processes", "failed",
    )  # fmt: skip
    print(f"{describe_machine()}\n\n{table(heads, rows)}\n\nmemory (PSS): {' and '.join(memory)}")


def compare(
    servers: dict[int, Server], request: Request, clients: int, options: argparse.Namespace
) -> list[str]:
    """Measure one number of clients; return medians, and the median of the rounds' ratios."""
    windows: dict[int, list[Window]] = {count: [] for count in servers}
    for _ in range(options.rounds):
        for count, server in servers.items():
            windows[count].append(run_window(server.port, request, clients, options.seconds))
    one, two = (windows[count] for count in COUNTS)
    ratios = [b.throughput / a.throughput for a, b in zip(one, two, strict=True)]
    times = [[1000 * t for window in each for t in window.latencies] for each in (one, two)]
    return [
        str(clients),
        *(f"{statistics.median(window.throughput for window in each):.1f}" for each in (one, two)),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(f"{percentile(each, 0.5):.0f}" for each in times),
        *(f"{percentile(each, 0.99):.0f}" for each in times),
        str(sum(window.errors for window in (*one, *two))),
    ]


def lock() -> None:
    """Measure how long an answer holds Python's lock, with py-spy, and reckon what follows.

    py-spy counts, at regular times, the threads that run or could run, and among them the one that
    holds the lock. Their ratio is the fraction of an answer's processor time under the lock; other
    programs on the machine delay both alike.
    """
    options = parse_options(lock.__doc__)
    if shutil.which("py-spy") is None:
        raise SystemExit("expected py-spy (pip install py-spy), got none in PATH")
    request = form_request(PATH, options.image.read_bytes())
    clients = max(options.clients)
    fractions, work = [], []
    with own_server(options.models, **settings_of(options)) as server:
        run_window(server.port, request, clients, options.seconds)  # warm
        for _ in range(options.rounds):
            before = cpu_seconds(server.pid)
            window = run_window(server.port, request, clients, options.seconds)
            work.append((cpu_seconds(server.pid) - before) / len(window.latencies))
            held, running = (
                count_samples(server, request, clients, options.seconds, *flags)
                for flags in (("--gil",), ())
            )
            fractions.append(held / running)
    work_s, fraction = statistics.median(work), statistics.median(fractions)
    lock_s = work_s * fraction
    print(
        f"{describe_machine()}\n\n{clients} clients: an answer takes {1000 * work_s:.1f} ms of a "
        f"core ({1000 * min(work):.1f} to {1000 * max(work):.1f}), {fraction:.3f} of it under the "
        f"lock ({min(fractions):.3f} to {max(fractions):.3f}), which is {1000 * lock_s:.2f} ms\n"
    )
    heads = ("cores", "answers/s of all cores", "answers/s of one lock", "processes")
    rows = [
        [str(cores), f"{cores / work_s:.0f}", f"{1 / lock_s:.0f}",
         str(math.ceil(cores * fraction / LOAD))]
        for cores in CORES
    ]  # fmt: skip
    print(table(heads, rows))


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, of all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def count_samples(
    server: Server, request: Request, clients: int, seconds: float, *flags: str
) -> int:
    """Count the threads that py-spy finds under load; it does not stop the process."""
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder) / "stacks.txt"
        command = [
            "py-spy", "record", *flags, "--nonblocking", "--format", "raw",
            "--rate", str(SAMPLES_PER_S), "--duration", str(max(1, round(seconds))),
            "--pid", str(server.pid), "--output", str(stacks),
        ]  # fmt: skip
        sampler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        run_window(server.port, request, clients, seconds + 1)  # py-spy takes a moment to begin
        told, _ = sampler.communicate()
        if not stacks.exists():
            raise SystemExit(f"expected the samples of py-spy, got: {told.decode()}")
        return sum(int(line.rpartition(" ")[2]) for line in stacks.read_text().splitlines())
