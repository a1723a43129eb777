"""Measure the active calibrator's cost under load: `python -m benchmarks.cost`.

One server answers windows of requests with and without the calibrator, alternately, so that both
see the same machine speed. The result is the median of the ratios of neighbouring windows.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import (
    BUNDLED,
    EXAMPLE,
    ROOT,
    Window,
    form_request,
    own_server,
    percentile,
    run_window,
    table,
)

CASES = ("none", "active")
PATH = "/segment?include=mask,confidence&calibrator="
HEADS = (
    "clients", "none, answers/s", "calibrated", "none, p50 ms", "calibrated", "its p99",
    "cost of calibration",
)  # fmt: skip


def measure(port: int, image: bytes, clients: int, seconds: float, rounds: int) -> list[str]:
    """Measure one number of clients; return a row of the table."""
    windows: dict[str, list[Window]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            request = form_request(PATH + case, image)
            windows[case].append(run_window(port, request, clients, seconds))
    return [str(clients), *row(windows)]


def row(windows: Mapping[str, list[Window]]) -> list[str]:
    """Return throughputs, latencies in milliseconds and the cost as a ratio."""
    rates = {case: [window.throughput for window in windows[case]] for case in CASES}
    times = {case: [t for window in windows[case] for t in window.latencies] for case in CASES}
    costs = [plain / active for plain, active in zip(*rates.values(), strict=True)]
    return [
        *(f"{statistics.median(rates[case]):.1f}" for case in CASES),
        *(f"{1000 * percentile(times[case], 0.5):.0f}" for case in CASES),
        f"{1000 * percentile(times['active'], 0.99):.0f}",
        f"{statistics.median(costs):.3f}",
    ]


def main() -> None:
    """Measure the active calibrator's cost on one server under load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    image = options.image.read_bytes()
    settings = {"DEFAULT_MODEL": options.model, "ARTIFACTS_DIR": ROOT / "calibration_artifacts"}
    with own_server(ROOT / "models", **settings) as server:
        rows = [
            measure(server.port, image, clients, options.seconds, options.rounds)
            for clients in options.clients
        ]
    print(f"{options.model}, {options.image.name}\n\n{table(HEADS, rows)}")


if __name__ == "__main__":
    main()
