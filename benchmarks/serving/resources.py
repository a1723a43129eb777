"""Measure one own server: memory over requests, a fit's effect, uploads and large images."""

import argparse
import io
import itertools
import json
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray

from app.inference.model_card import read_model_folder
from benchmarks.harness import (
    ADMIN,
    BUNDLED,
    MIB,
    ROOT,
    Request,
    Server,
    own_server,
    process_bytes,
    send_request,
    synthetic_image,
    table,
)

SIZES = ((90, 120), (120, 360), (240, 320), (360, 480), (480, 360), (480, 640), (720, 960))
TENTHS = (1, 2, 5, 10)
FORMATS = ("application/json", "image/png", "application/x-npz")
TAIL_GRID, UPLOAD_GRID = (90, 120), (180, 240)
BOUNDARY = "benchmark"
DISTINCT_IMAGES = 8  # of an upload, repeated
SAMPLE_S = 0.02
MEGAPIXELS = (1, 8, 25, 100)
LARGE_ANSWER_S = 3600.0
JPEG = {"Content-Type": "image/jpeg"}


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the model's options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default=BUNDLED)
    return parser


def overconfident(
    images: int, classes: int, grid: tuple[int, int]
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return logits [N,K,h,w], three times the calibrated ones, and labels [N,h,w]."""
    rng = np.random.default_rng(0)
    calibrated = 2 * rng.standard_normal((images, classes, *grid), np.float32)
    labels = (calibrated + rng.gumbel(size=calibrated.shape)).argmax(1).astype(np.uint8)
    return (3 * calibrated).astype(np.float16), labels


def memory() -> None:
    """Measure a server's memory over thousands of requests of mixed sizes."""
    parser = model_parser(memory.__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--result-bytes", type=int, default=32 * MIB)
    options = parser.parse_args()
    rng = random.Random(0)
    images = [
        synthetic_image(height + rng.randrange(32), width + rng.randrange(32), seed)
        for seed, (height, width) in enumerate(rng.choices(SIZES, k=200))
    ]
    settings = {"DEFAULT_MODEL": options.model, "RESULT_BYTES": options.result_bytes}
    with (
        own_server(options.models, **settings) as server,
        httpx2.Client(base_url=server.url, timeout=600) as client,
        ThreadPoolExecutor(options.clients) as pool,
    ):

        def post_image(number: int) -> None:
            headers = JPEG | {"Accept": FORMATS[number % len(FORMATS)]}
            body = images[number * 7919 % len(images)]
            client.post("/segment", content=body, headers=headers).raise_for_status()

        resident, done = {0: process_bytes(server.pid)}, 0
        for tenths in TENTHS:
            until = options.requests * tenths // 10
            list(pool.map(post_image, range(done, until)))
            resident[until], done = process_bytes(server.pid), until
        peak = process_bytes(server.pid, "VmHWM")
    first = resident[options.requests // 10]
    named = [*((str(count), size) for count, size in resident.items()), ("peak", peak)]
    rows = [[name, f"{size / MIB:.0f}", f"{size / first:.3f}"] for name, size in named]
    print(table(["requests answered", "resident, MiB", "of that after a tenth"], rows))


def tail() -> None:
    """Measure the latency of /segment with and without a fit at work, in alternate phases."""
    parser = model_parser(tail.__doc__)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--images", type=int, default=101, help="in the fit's upload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100, help="in a phase, at most")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    options = parser.parse_args()
    body = synthetic_image(options.height, options.width)
    upload = npz(options.images, read_model_folder(options.models / options.model).num_classes)
    idle: list[float] = []
    fitting: list[float] = []
    with (
        own_server(options.models, DEFAULT_MODEL=options.model) as server,
        httpx2.Client(base_url=server.url, timeout=600) as client,
    ):
        for _ in range(5):
            latency(client, body)
        for _ in range(options.rounds):
            idle += [latency(client, body) for _ in range(options.requests)]
            fitting += during_fit(client, body, upload, options)
    cuts = [statistics.quantiles(times, n=100, method="inclusive") for times in (idle, fitting)]
    p50, p99 = ([1000 * cut[place] for cut in cuts] for place in (49, 98))
    rows = [
        ["without a fit", str(len(idle)), f"{p50[0]:.1f}", f"{p99[0]:.1f}"],
        ["with a fit", str(len(fitting)), f"{p50[1]:.1f}", f"{p99[1]:.1f}"],
        ["ratio", "", f"{p50[1] / p50[0]:.2f}", f"{p99[1] / p99[0]:.2f}"],
    ]
    print(table(["/segment", "requests", "p50, ms", "p99, ms"], rows))


def npz(images: int, classes: int) -> bytes:
    """Encode logits and labels of an over-confident network as .npz."""
    logits, labels = overconfident(images, classes, TAIL_GRID)
    buffer = io.BytesIO()
    np.savez(buffer, logits=logits, labels=labels)
    return buffer.getvalue()


def latency(client: httpx2.Client, body: bytes) -> float:
    """Segment one image; return the seconds."""
    began = time.perf_counter()
    headers = JPEG | {"Accept": "image/png"}
    client.post("/segment", content=body, headers=headers).raise_for_status()
    return time.perf_counter() - began


def during_fit(
    client: httpx2.Client, body: bytes, upload: bytes, options: argparse.Namespace
) -> list[float]:
    """Return latencies while a fit runs: so many requests, or until the fit ends."""
    form = {"method": options.method, "activate": "never"}
    answer = client.post("/calibrate", files={"logits": upload}, data=form, headers=ADMIN)
    answer.raise_for_status()
    job = answer.headers["location"]
    while client.get(job).json()["stage"] in ("queued", "starting"):
        time.sleep(0.05)
    times: list[float] = []
    for count in itertools.count():
        if count % 5 == 0 and client.get(job).json()["state"] != "running":
            break
        times.append(latency(client, body))
        if len(times) >= options.requests:
            break
    client.delete(job, headers=ADMIN)
    return times


@dataclass
class UploadPeaks:
    """Peak bytes of the server, of its fits, and of the fits without mapped files."""

    server: int = 0
    worker: int = 0
    anonymous: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def sample(self, pid: int) -> None:
        """Sample until `done` is set."""
        while not self.done.wait(SAMPLE_S):
            self.server = max(self.server, process_bytes(pid))
            with suppress(OSError, ValueError):  # a child may end in between
                for child in children(pid):
                    self.worker = max(self.worker, process_bytes(child))
                    self.anonymous = max(self.anonymous, process_bytes(child, "RssAnon"))


def children(pid: int) -> list[int]:
    """Return a process's own children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextmanager
def sampled(pid: int) -> Iterator[UploadPeaks]:
    """Sample a server's memory while a block runs."""
    peaks = UploadPeaks()
    thread = threading.Thread(target=peaks.sample, args=(pid,))
    thread.start()
    try:
        yield peaks
    finally:
        peaks.done.set()
        thread.join()


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file."""
    buffer = io.BytesIO()
    described = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def part(name: str) -> bytes:
    """Return the start of a form's field."""
    return (f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n').encode()


def upload_form(images: int, classes: int, method: str) -> Iterator[bytes]:
    """Yield the body in pieces, so that the client never holds it whole."""
    logits, labels = overconfident(DISTINCT_IMAGES, classes, UPLOAD_GRID)
    yield part("method") + method.encode() + part("activate") + b"never"
    yield part("labels") + npy_header("|u1", (images, *UPLOAD_GRID))
    for index in range(images):
        yield labels[index % DISTINCT_IMAGES].tobytes()
    yield part("logits") + npy_header("<f2", (images, classes, *UPLOAD_GRID))
    for index in range(images):
        yield logits[index % DISTINCT_IMAGES].tobytes()
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def send_upload(server: Server, images: int, classes: int, method: str) -> list[str]:
    """Send one upload and wait for its fit; return a row of the table."""
    size = images * UPLOAD_GRID[0] * UPLOAD_GRID[1] * (2 * classes + 1)
    headers = ADMIN | {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    before = process_bytes(server.pid)
    with httpx2.Client(base_url=server.url, timeout=None) as client, sampled(server.pid) as peaks:
        began = time.perf_counter()
        body = upload_form(images, classes, method)
        answer = client.post("/calibrate", content=body, headers=headers)
        accepted = time.perf_counter()
        answer.raise_for_status()
        job = answer.json()
        while job["state"] in ("queued", "running"):
            time.sleep(0.2)
            job = client.get(answer.headers["location"]).json()
        ended = time.perf_counter()
    if job["state"] != "succeeded":
        raise RuntimeError(f"expected a fit that succeeds, got: {job['error']}")
    sizes = (before, peaks.server, peaks.worker, peaks.anonymous)
    times = (f"{accepted - began:.1f}", f"{ended - accepted:.1f}")
    return [f"{size / 2**30:.2f}", *times, *(f"{each / MIB:.0f}" for each in sizes)]


def uploads() -> None:
    """Measure the memory of two uploads to POST /calibrate, the second 16 times the first."""
    parser = model_parser(uploads.__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the larger upload")
    parser.add_argument("--method", default="temperature")
    options = parser.parse_args()
    classes = read_model_folder(options.models / options.model).num_classes
    image = UPLOAD_GRID[0] * UPLOAD_GRID[1] * (2 * classes + 1)
    most = max(2 * 16, int(options.gib * 2**30 / image))
    with own_server(options.models, DEFAULT_MODEL=options.model, THREADS=1) as server:
        rows = [send_upload(server, count, classes, options.method) for count in (most // 16, most)]
    heads = [
        "upload, GiB", "sent and checked, s", "fitted, s", "server before, MiB",
        "server's peak, MiB", "fit's peak, MiB", "without mapped files, MiB",
    ]  # fmt: skip
    print(table(heads, rows))


def large() -> None:
    """Measure memory and time of large images in the modes slide and whole."""
    parser = model_parser(large.__doc__)
    parser.add_argument("--crop", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=896)
    parser.add_argument("--megapixels", type=int, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--whole-up-to", type=int, default=25, help="megapixels in mode whole")
    parser.add_argument("--modes", nargs="+", default=["slide", "whole"])
    parser.add_argument("--tta", default="none")
    options = parser.parse_args()
    rows = [row for mode in options.modes for row in measure_mode(mode, options)]
    heads = ["mode", "megapixels", "peak above idle, MiB", "bytes a pixel", "seconds"]
    print(table(heads, rows))


def measure_mode(mode: str, options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each size, from one server of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        models, artifacts = Path(scratch) / "models", Path(scratch) / "artifacts"
        copy_model(options.models / options.model, mode, options.crop, options.stride, models)
        shutil.copytree(ROOT / "calibration_artifacts", artifacts)
        settings: dict[str, str | int | Path] = {
            "ARTIFACTS_DIR": artifacts, "MAX_PIXELS": 200_000_000, "DEVICE": "cpu",
            "MAX_UPLOAD_BYTES": 512 * MIB,
        }  # fmt: skip
        with own_server(models, **settings) as server:
            send_large(server, 480, "none")
            idle = process_bytes(server.pid)
            for size in options.megapixels:
                if mode == "whole" and size > options.whole_up_to:
                    yield [mode, str(size), "not run", "", ""]
                    continue
                seconds = send_large(server, round((size * 1e6) ** 0.5), options.tta)
                above = process_bytes(server.pid, "VmHWM") - idle
                per_pixel = above / (size * 1e6)
                yield [
                    mode, str(size), f"{above / MIB:.0f}", f"{per_pixel:.1f}", f"{seconds:.1f}",
                ]  # fmt: skip


def copy_model(model: Path, mode: str, crop: int, stride: int, target: Path) -> None:
    """Copy a model and set its card's mode."""
    folder = target / model.name
    shutil.copytree(model, folder)
    card = folder / "card.toml"
    lines = [
        line
        for line in card.read_text("utf-8").splitlines()
        if line.partition("=")[0].strip() not in ("mode", "crop", "stride", "blend")
    ]
    if mode == "slide":
        after = lines.index("[input]") + 1
        windows = ['mode = "slide"', f"crop = [{crop}, {crop}]", f"stride = [{stride}, {stride}]"]
        lines[after:after] = windows
    card.write_text("\n".join(lines) + "\n", "utf-8")


def send_large(server: Server, side: int, tta: str) -> float:
    """Segment a square image, having reset the server's peak memory; return the seconds."""
    request = Request(f"/segment?include=mask&tta={tta}", JPEG, synthetic_image(side, side, side))
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # resets VmHWM
    began = time.perf_counter()
    answer = json.loads(send_request(server.port, request, LARGE_ANSWER_S))
    seconds = time.perf_counter() - began
    if (answer["width"], answer["height"]) != (side, side):
        raise SystemExit(f"expected a mask of {side}x{side}, got {answer['width']}")
    return seconds
