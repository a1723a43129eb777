"""Where a request's time goes, stage by stage in one process, with and without a calibrator.

`python -m benchmarks.request [--image FILE] [--rounds 60]` prints Markdown: medians in
milliseconds of the same image segmented in turns with `calibrator=none`, with the active one, and
with a fresh one of each method named, which costs what a fitted one does.
"""

import argparse
import functools
import io
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.calibration.base import Calibrator
from app.calibration.registry import build
from app.imaging import encode
from app.imaging.decode import decode_image
from app.inference.model_card import read_model_folder
from app.inference.postprocess import tally
from app.inference.predictor import Predictor, open_predictor
from app.inference.threads import RowThreads
from app.serving.pipeline import Emission, rate, shown
from app.settings import available_cores
from app.storage.artifacts import ArtifactStore

METHODS = ("temperature", "selective", "matrix", "isotonic", "lts", "cdc")
STAGES = (
    "decode", "preprocess", "inference", "calibration", "emission", "tally", "mask", "confidence",
)  # fmt: skip
MAX_PIXELS = 50_000_000


class Times:
    """Seconds of every stage, by case."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], list[float]] = {}

    @contextmanager
    def stage(self, case: str, stage: str) -> Iterator[None]:
        """Take the time of a block."""
        started = time.perf_counter()
        yield
        self._taken.setdefault((case, stage), []).append(time.perf_counter() - started)

    def median_ms(self, case: str, stage: str) -> float:
        """Give the median in milliseconds."""
        return 1000 * statistics.median(self._taken[case, stage])


def image(height: int, width: int) -> bytes:
    """Make a JPEG of soft patches under grain, for those without a photograph at hand."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 255, (height // 40 + 1, width // 40 + 1, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def request(
    predictor: Predictor,
    calibrator: Calibrator | None,
    upload: bytes,
    threads: RowThreads,
    stage: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Do what the service does for one JSON answer with both images inside."""
    with stage("decode"):
        pixels = decode_image(upload, MAX_PIXELS)
    with stage("preprocess"):
        laid = predictor.lay(pixels)
    classes = predictor.folder.num_classes
    with stage("inference"):
        ((logits,), band), *_ = predictor.strips(laid)
    with stage("calibration"):
        seeing = calibrator and shown(calibrator, laid, logits, band)
        rated = rate(logits, seeing, threads.share)
    with stage("emission"):
        emission = Emission(laid.geometry, classes, threads)
        emission.emit(rated, band)
        emission.settle()
    mask, confidence = emission.mask, emission.confidence
    with stage("tally"):
        tally(mask, confidence)
    with stage("mask"):
        encode.mask_png(mask, predictor.folder.palette)
    with stage("confidence"):
        encode.confidence_png(confidence)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/camvid-street"))
    parser.add_argument("--artifacts", type=Path, default=Path("calibration_artifacts"))
    parser.add_argument("--image", type=Path, help="default: a made-up image of 480x360")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a service whose networks are not in torch
    folder = read_model_folder(options.model)
    predictor = open_predictor(folder, "cpu", options.threads)
    upload = options.image.read_bytes() if options.image else image(360, 480)
    active = ArtifactStore(options.artifacts).active(folder.card.name, folder.sha256)
    cases: dict[str, Calibrator | None] = {"none": None}
    if active is not None:
        cases[f"active ({active.manifest.method})"] = active.calibrator
    cases |= {method: build(method, folder.num_classes) for method in METHODS}
    times, threads = Times(), RowThreads(options.threads)
    for turn in range(options.rounds + 3):
        kept = times if turn >= 3 else Times()  # the first turns warm up
        for case, calibrator in cases.items():
            with kept.stage(case, "total"):
                stage = functools.partial(kept.stage, case)
                request(predictor, calibrator, upload, threads, stage)
    print(f"{options.threads} threads, medians of {options.rounds}, ms\n")
    print("| calibrator |", *(f"{stage} |" for stage in STAGES), "total | of none |")
    print("|---|", *("---:|" for _ in range(len(STAGES) + 2)))
    for case in cases:
        cells = [f"{times.median_ms(case, stage):.2f} |" for stage in STAGES]
        total = times.median_ms(case, "total")
        ratio = total / times.median_ms("none", "total")
        print(f"| {case} |", *cells, f"{total:.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
