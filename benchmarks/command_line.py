"""Measure the throughput of `segcal segment` beside the service's.

`python -m benchmarks.serving files`. Rounds alternate between the service under closed-loop
load with the same images, and the command in a process of its own on all of them and on one. The
command's start-up, which is the time for one image, is taken off and given apart.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from PIL import Image, ImageChops

from benchmarks.harness import (
    ANSWER_S,
    EXAMPLE,
    ROOT,
    Request,
    exchange,
    form_request,
    own_server,
    table,
)

INT8 = "camvid-street-int8"
PATH = "/segment?include=mask,confidence"
HEADS = ("images", "service, images/s", "command, images/s", "start-up s", "ratio")


def shifted(image: Path, count: int) -> list[bytes]:
    """Encode copies of an image as JPEG, each shifted sideways by 4 pixels more."""
    copies = []
    with Image.open(image) as opened:
        pixels = opened.convert("RGB")
    for number in range(count):
        buffer = io.BytesIO()
        ImageChops.offset(pixels, 4 * number, 0).save(buffer, "JPEG", quality=90)
        copies.append(buffer.getvalue())
    return copies


def serve_all(port: int, requests: Sequence[Request], clients: int) -> float:
    """Send all requests from several clients; return the seconds."""

    def send(part: Sequence[Request]) -> None:
        with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as connection:
            for request in part:
                exchange(connection, request)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, [requests[number::clients] for number in range(clients)]))
    return time.perf_counter() - started


def segment_files(paths: Sequence[Path], model: str) -> float:
    """Run `segcal segment` on files; return the seconds of the process."""
    with tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as out:
        command = [
            sys.executable, "-m", "app", "segment", *map(str, paths), "--model", model,
            "--out", out,
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - started


def row(
    service: Sequence[float], whole: Sequence[float], one: Sequence[float], n: int
) -> list[str]:
    """Return throughputs, the start-up and the median of the ratios of neighbouring runs."""
    rates = [n / seconds for seconds in service]
    own = [(n - 1) / (all_s - one_s) for all_s, one_s in zip(whole, one, strict=True)]
    ratios = [mine / theirs for mine, theirs in zip(own, rates, strict=True)]
    return [
        str(n),
        f"{statistics.median(rates):.1f}",
        f"{statistics.median(own):.1f}",
        f"{statistics.median(one):.1f}",
        f"{statistics.median(ratios):.2f}",
    ]


def files() -> None:
    """Measure the throughput of `segcal segment` beside the service's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=INT8)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--images", type=int, default=100, help="shifted copies of the image")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    uploads = shifted(options.image, options.images)
    requests = [form_request(PATH, upload) for upload in uploads]
    settings = {"DEFAULT_MODEL": options.model, "ARTIFACTS_DIR": ROOT / "calibration_artifacts"}
    service, whole, one = [], [], []
    with tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as name:
        paths = [Path(name) / f"{number:04}.jpg" for number in range(len(uploads))]
        for path, upload in zip(paths, uploads, strict=True):
            path.write_bytes(upload)
        with own_server(ROOT / "models", **settings) as server:
            serve_all(server.port, requests[: options.clients], options.clients)
            segment_files(paths[:1], options.model)
            for _ in range(options.rounds):
                service.append(serve_all(server.port, requests, options.clients))
                whole.append(segment_files(paths, options.model))
                one.append(segment_files(paths[:1], options.model))
    print(f"{options.model}, {options.image.name}\n")
    print(table(HEADS, [row(service, whole, one, len(paths))]))
