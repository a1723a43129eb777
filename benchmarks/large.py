"""Memory and time of large images, in mode slide and in mode whole, through a real server.

`python -m benchmarks.large --model models/camvid-street`

Each mode is a server of its own, which answers one small image before its idle memory is read.
Then JPEGs of growing size go through `POST /segment?include=mask`; the peak is the kernel's
high-water mark, set back before each. Prints a Markdown table.
"""

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
MEGAPIXELS = (1, 8, 25, 100)
MEBI = 1 << 20
READY_S, ANSWER_S = 120, 3600
BLOCK = 40  # pixels a side, of one colour each before smoothing


@dataclass(frozen=True)
class Figures:
    """What one image took: bytes of memory above the idle server, seconds, Server-Timing."""

    above_idle: int
    seconds: float
    timing: str


def image(side: int) -> bytes:
    """Make a JPEG of side x side pixels: soft patches under grain, much like a photograph."""
    rng = np.random.default_rng(side)
    cells = -(-side // BLOCK)
    patches = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    large = patches.resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def models_folder(model: Path, mode: str, crop: int, stride: int, target: Path) -> None:
    """Copy a model with its card changed to the mode."""
    folder = target / model.name
    shutil.copytree(model, folder)
    card = (folder / "card.toml").read_text("utf-8")
    kept = [
        line
        for line in card.splitlines()
        if line.partition("=")[0].strip() not in ("mode", "crop", "stride", "blend")
    ]
    if mode == "slide":
        at = kept.index("[input]") + 1
        windows = f'mode = "slide"\ncrop = [{crop}, {crop}]\nstride = [{stride}, {stride}]'
        kept[at:at] = windows.splitlines()
    (folder / "card.toml").write_text("\n".join(kept) + "\n", "utf-8")
    tomllib.loads("\n".join(kept))


@contextmanager
def serving(models: Path, artifacts: Path, threads: int) -> Iterator[tuple[str, int]]:
    """Run a server; give its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "SEGCAL_MODELS_DIR": str(models),
        "SEGCAL_ARTIFACTS_DIR": str(artifacts),
        "SEGCAL_MAX_PIXELS": "200000000",
        "SEGCAL_MAX_UPLOAD_BYTES": str(512 * MEBI),
        "SEGCAL_THREADS": str(threads),
        "SEGCAL_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.DEVNULL
    ) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_ready(address)
            yield address, server.pid
        finally:
            server.terminate()


def wait_ready(address: str) -> None:
    """Wait until the models are loaded."""
    end = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def memory(pid: int, field: str) -> int:
    """Read a process's memory in bytes: VmRSS now, VmHWM at its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"expected {field} of process {pid}, got none")


def ask(address: str, upload: bytes, tta: str) -> tuple[dict[str, object], str]:
    """Segment one image; give the answer and its Server-Timing."""
    request = urllib.request.Request(
        f"{address}/segment?include=mask&tta={tta}", upload, {"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        return json.load(response), response.headers["Server-Timing"]


def measure(address: str, pid: int, idle: int, side: int, tta: str) -> Figures:
    """Send one image and look at the server's peak."""
    upload = image(side)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # sets the high-water mark back
    start = time.perf_counter()
    answer, timing = ask(address, upload, tta)
    seconds = time.perf_counter() - start
    if (answer["width"], answer["height"]) != (side, side):
        raise SystemExit(f"expected a mask of {side}x{side}, got {answer['width']}")
    return Figures(memory(pid, "VmHWM") - idle, seconds, timing)


def main() -> None:
    """Measure both modes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "camvid-street")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "calibration_artifacts")
    parser.add_argument("--crop", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=896)
    parser.add_argument("--megapixels", type=int, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--whole-up-to", type=int, default=25, help="megapixels in mode whole")
    parser.add_argument("--modes", nargs="+", default=["slide", "whole"])
    parser.add_argument("--tta", default="none")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends as well
    print("| mode | megapixels | peak above idle, MiB | bytes a pixel | seconds |")
    print("|---|---:|---:|---:|---:|")
    for mode in args.modes:
        with tempfile.TemporaryDirectory() as scratch:
            models, artifacts = Path(scratch) / "models", Path(scratch) / "artifacts"
            models_folder(args.model, mode, args.crop, args.stride, models)
            shutil.copytree(args.artifacts, artifacts)
            with serving(models, artifacts, args.threads) as (address, pid):
                ask(address, image(480), "none")
                idle = memory(pid, "VmRSS")
                for size in args.megapixels:
                    if mode == "whole" and size > args.whole_up_to:
                        print(f"| {mode} | {size} | not run | | |")
                        continue
                    found = measure(address, pid, idle, round((size * 1e6) ** 0.5), args.tta)
                    each = found.above_idle / (size * 1e6)
                    print(
                        f"| {mode} | {size} | {found.above_idle / MEBI:.0f} | {each:.1f} "
                        f"| {found.seconds:.1f} |",
                        flush=True,
                    )
                    print(f"  {found.timing}", file=sys.stderr)
                print(f"  idle {idle / MEBI:.0f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
