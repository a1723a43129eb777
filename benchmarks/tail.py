"""What a fit does to `/segment`: `python -m benchmarks.tail`.

One client asks one image after another, in phases with a fit at work and without, in turn, on
the same real server. What matters is the ratio of the 99th percentiles.
"""

import argparse
import io
import itertools
import statistics
import time
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from app.inference.model_card import read_model_folder
from benchmarks.own_server import ADMIN, Server, serving, table

GRID = (90, 120)


def image(height: int, width: int, seed: int) -> bytes:
    """Encode a smooth random image as JPEG."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def arrays(images: int, classes: int) -> bytes:
    """Encode logits float16 [N,K,h,w] of an over-confident network, and labels, as .npz."""
    rng = np.random.default_rng(0)
    honest = 2 * rng.standard_normal((images, classes, *GRID), np.float32)
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(1).astype(np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, logits=(3 * honest).astype(np.float16), labels=labels)
    return buffer.getvalue()


def ask(client: httpx2.Client, body: bytes) -> float:
    """Segment one image; gives the seconds that took."""
    began = time.perf_counter()
    headers = {"Content-Type": "image/jpeg", "Accept": "image/png"}
    client.post("/segment", content=body, headers=headers).raise_for_status()
    return time.perf_counter() - began


def without_fit(client: httpx2.Client, body: bytes, requests: int) -> list[float]:
    """Ask so many times."""
    return [ask(client, body) for _ in range(requests)]


def with_fit(
    client: httpx2.Client, body: bytes, upload: bytes, requests: int, method: str
) -> list[float]:
    """Ask so many times, or until the fit ends, while it is fitting."""
    form = {"method": method, "activate": "never"}
    answer = client.post("/calibrate", files={"logits": upload}, data=form, headers=ADMIN)
    answer.raise_for_status()
    job = answer.headers["location"]
    while client.get(job).json()["stage"] in ("queued", "starting"):
        time.sleep(0.05)
    times = []
    for count in itertools.count():
        if count % 5 == 0 and client.get(job).json()["state"] != "running":
            break
        times.append(ask(client, body))
        if len(times) >= requests:
            break
    client.delete(job, headers=ADMIN)
    return times


def phases(server: Server, options: argparse.Namespace, classes: int) -> list[list[float]]:
    """Go through the phases in turn; gives the times without a fit and with one."""
    body = image(options.height, options.width, 0)
    upload = arrays(options.images, classes)
    quiet: list[float] = []
    fitting: list[float] = []
    with httpx2.Client(base_url=server.url, timeout=600) as client:
        without_fit(client, body, 5)
        for _ in range(options.rounds):
            quiet += without_fit(client, body, options.requests)
            fitting += with_fit(client, body, upload, options.requests, options.method)
    return [quiet, fitting]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="camvid-street")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--images", type=int, default=101, help="in the upload that is fitted on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100, help="in a phase, at most")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    options = parser.parse_args()
    classes = read_model_folder(options.models / options.model).num_classes
    with serving(options.models, DEFAULT_MODEL=options.model) as server:
        measured = phases(server, options, classes)
    names = ("without a fit", "with a fit")
    cuts = [statistics.quantiles(times, n=100, method="inclusive") for times in measured]
    rows = [
        [name, f"{len(times)}", f"{1000 * cut[49]:.1f}", f"{1000 * cut[98]:.1f}"]
        for name, times, cut in zip(names, measured, cuts, strict=True)
    ]
    rows.append(
        ["ratio", "", f"{cuts[1][49] / cuts[0][49]:.2f}", f"{cuts[1][98] / cuts[0][98]:.2f}"]
    )
    print(table(["/segment", "requests", "p50, ms", "p99, ms"], rows))


if __name__ == "__main__":
    main()
