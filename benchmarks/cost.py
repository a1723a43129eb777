"""What the active calibrator costs under load: `python -m benchmarks.cost`.

One real server is asked by several clients in windows, with the calibrator and with none in turn,
so that a machine that is faster now and slower then is so for both. What matters is the median of
the ratios of neighbouring windows.
"""

import argparse
import statistics
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.load import form_request, percentile, run_window
from benchmarks.own_server import serving, table
from benchmarks.shapes import BUNDLED, ROOT

IMAGE = ROOT / "examples/street.jpg"
CASES = ("none", "active")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    image = options.image.read_bytes()
    path = "/segment?include=mask,confidence&calibrator="
    rows = []
    settings = {"DEFAULT_MODEL": options.model, "ARTIFACTS_DIR": ROOT / "calibration_artifacts"}
    with serving(ROOT / "models", **settings) as server:
        port = urlsplit(server.url).port or 80
        for clients in options.clients:
            rates: dict[str, list[float]] = {case: [] for case in CASES}
            latencies: dict[str, list[float]] = {case: [] for case in CASES}
            for _ in range(options.rounds):
                for case in CASES:
                    request = form_request(path + case, image)
                    window = run_window(port, request, clients, options.seconds)
                    rates[case].append(window.throughput)
                    latencies[case] += window.latencies
            costs = [plain / ours for plain, ours in zip(*rates.values(), strict=True)]
            rows.append([
                str(clients),
                *(f"{statistics.median(rates[case]):.1f}" for case in CASES),
                *(f"{1000 * percentile(latencies[case], 0.5):.0f}" for case in CASES),
                f"{1000 * percentile(latencies['active'], 0.99):.0f}",
                f"{statistics.median(costs):.3f}",
            ])  # fmt: skip
    heads = [
        "clients", "none, answers/s", "calibrated", "none, p50 ms", "calibrated", "its p99",
        "cost of calibration",
    ]  # fmt: skip
    print(f"{options.model}, {options.image.name}\n\n{table(heads, rows)}")


if __name__ == "__main__":
    main()
