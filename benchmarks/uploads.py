"""How much memory `POST /calibrate` takes for gigabytes: `python -m benchmarks.uploads`.

Two uploads go to one real server, the second 16 times the first. Their logits are made while they
are sent and are at no time in the client's memory. What matters is the ratio of the peaks.
"""

import argparse
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np

from app.inference.model_card import read_model_folder
from benchmarks.own_server import ADMIN, MIB, Server, children, memory, serving, table

GRID = (180, 240)
BOUNDARY = "benchmark"
VARIETY = 8  # different images, sent in turn
EVERY_S = 0.02


@dataclass
class Peaks:
    """The most memory seen of the server and of its fits, in bytes."""

    server: int = 0
    worker: int = 0
    own: int = 0  # of the fit, without the pages of the upload that it has mapped
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self, pid: int) -> None:
        """Sample until told to stop."""
        while not self.done.wait(EVERY_S):
            self.server = max(self.server, memory(pid))
            with suppress(OSError, ValueError):  # a child may end in between
                for child in children(pid):
                    self.worker = max(self.worker, memory(child))
                    self.own = max(self.own, memory(child, "RssAnon"))


@contextmanager
def watching(pid: int) -> Iterator[Peaks]:
    """Sample a server's memory while a block runs."""
    peaks = Peaks()
    thread = threading.Thread(target=peaks.watch, args=(pid,))
    thread.start()
    try:
        yield peaks
    finally:
        peaks.done.set()
        thread.join()


def header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Write the header of a .npy file."""
    buffer = io.BytesIO()
    described = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def part(name: str) -> bytes:
    """Begin a field of the form."""
    return (f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n').encode()


def form(images: int, classes: int, method: str) -> Iterator[bytes]:
    """Give the body piece by piece: labels uint8 [N,h,w], logits float16 [N,K,h,w]."""
    rng = np.random.default_rng(0)
    honest = 2 * rng.standard_normal((VARIETY, classes, *GRID), np.float32)
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(1).astype(np.uint8)
    logits = (3 * honest).astype(np.float16)
    yield part("method") + method.encode() + part("activate") + b"never"
    yield part("labels") + header("|u1", (images, *GRID))
    for index in range(images):
        yield labels[index % VARIETY].tobytes()
    yield part("logits") + header("<f2", (images, classes, *GRID))
    for index in range(images):
        yield logits[index % VARIETY].tobytes()
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def upload(server: Server, images: int, classes: int, method: str) -> list[str]:
    """Send one upload, wait for its fit, and give a row of the table."""
    size = images * GRID[0] * GRID[1] * (2 * classes + 1)
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    before = memory(server.pid)
    with httpx2.Client(base_url=server.url, timeout=None) as client, watching(server.pid) as peaks:
        began = time.perf_counter()
        body = form(images, classes, method)
        answer = client.post("/calibrate", content=body, headers=ADMIN | kind)
        answered = time.perf_counter()
        answer.raise_for_status()
        job = answer.json()
        while job["state"] in ("queued", "running"):
            time.sleep(0.2)
            job = client.get(answer.headers["location"]).json()
        ended = time.perf_counter()
    if job["state"] != "succeeded":
        raise RuntimeError(f"expected a fit that succeeds, got: {job['error']}")
    return [
        f"{size / 2**30:.2f}", f"{answered - began:.1f}", f"{ended - answered:.1f}",
        f"{before / MIB:.0f}", f"{peaks.server / MIB:.0f}", f"{peaks.worker / MIB:.0f}",
        f"{peaks.own / MIB:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the larger upload")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="camvid-street")
    parser.add_argument("--method", default="temperature")
    options = parser.parse_args()
    classes = read_model_folder(options.models / options.model).num_classes
    image = GRID[0] * GRID[1] * (2 * classes + 1)
    most = max(2 * 16, int(options.gib * 2**30 / image))
    with serving(options.models, DEFAULT_MODEL=options.model, THREADS=1) as server:
        rows = [upload(server, count, classes, options.method) for count in (most // 16, most)]
    heads = [
        "upload, GiB", "sent and checked, s", "fitted, s", "server before, MiB",
        "server's peak, MiB", "fit's peak, MiB", "without mapped files, MiB",
    ]  # fmt: skip
    print(table(heads, rows))


if __name__ == "__main__":
    main()
