"""Measure the stages of a request in one process, with and without a calibrator.

`python -m benchmarks.request [--image FILE] [--rounds 60]` prints median milliseconds of one image
segmented alternately with `calibrator=none`, with the active calibrator, and with an unfitted one
of each method in METHODS, whose cost equals a fitted one's.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from app.calibration.base import Calibrator
from app.calibration.registry import build
from app.imaging import encode
from app.imaging.decode import decode_image
from app.inference.model_card import ModelFolder, read_model_folder
from app.inference.postprocess import class_statistics
from app.inference.predictor import Predictor, open_predictor
from app.inference.threads import RowWorkers
from app.serving.pipeline import Postprocessor, calibrate_strip, with_strip_image
from app.settings import available_cores
from app.storage.artifacts import ArtifactStore
from benchmarks.harness import synthetic_image, table

METHODS = ("temperature", "selective", "matrix", "isotonic", "lts", "cdc")
STAGES = (
    "decode", "preprocess", "inference", "calibration", "postprocess", "class statistics", "mask",
    "confidence",
)  # fmt: skip
MAX_PIXELS = 50_000_000
WARM_UP = 3  # rounds


class Times:
    """Record seconds of every stage, by case."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], list[float]] = {}

    @contextmanager
    def stage(self, case: str, stage: str) -> Iterator[None]:
        """Measure the time of a block."""
        started = time.perf_counter()
        yield
        self._taken.setdefault((case, stage), []).append(time.perf_counter() - started)

    def median_ms(self, case: str, stage: str) -> float:
        """Return the median in milliseconds."""
        return 1000 * statistics.median(self._taken[case, stage])


def request(
    predictor: Predictor,
    calibrator: Calibrator | None,
    upload: bytes,
    threads: RowWorkers,
    stage: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Run the stages of one JSON answer with mask and confidence."""
    with stage("decode"):
        pixels = decode_image(upload, MAX_PIXELS)
    with stage("preprocess"):
        prepared = predictor.prepare_windows(pixels)
    classes = predictor.folder.num_classes
    with stage("inference"):
        ((logits,), band), *_ = predictor.strips(prepared)
    with stage("calibration"):
        fitted = calibrator and with_strip_image(calibrator, prepared, logits, band)
        calibrated = calibrate_strip(logits, fitted, threads.map_rows)
    with stage("postprocess"):
        output = Postprocessor(prepared.geometry, classes, threads)
        output.postprocess(calibrated, band)
        output.combine_shifts()
    mask, confidence = output.mask, output.confidence
    with stage("class statistics"):
        class_statistics(mask, confidence)
    with stage("mask"):
        encode.mask_png(mask, predictor.folder.palette)
    with stage("confidence"):
        encode.confidence_png(confidence)


def calibrators(artifacts: Path, folder: ModelFolder) -> dict[str, Calibrator | None]:
    """Return the measured calibrators by name: none, the active one and one of each method."""
    active = ArtifactStore(artifacts).active(folder.card.name, folder.sha256)
    cases: dict[str, Calibrator | None] = {"none": None}
    if active is not None:
        cases[f"active ({active.manifest.method})"] = active.calibrator
    return cases | {method: build(method, folder.num_classes) for method in METHODS}


def main() -> None:
    """Measure the stages of a request in one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/camvid-street"))
    parser.add_argument("--artifacts", type=Path, default=Path("calibration_artifacts"))
    parser.add_argument("--image", type=Path, help="default: a synthetic image of 480x360")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a service whose networks are not in torch
    folder = read_model_folder(options.model)
    predictor = open_predictor(folder, "cpu", options.threads)
    upload = options.image.read_bytes() if options.image else synthetic_image(360, 480, grain=6)
    cases = calibrators(options.artifacts, folder)
    times, threads = Times(), RowWorkers(options.threads)
    for number in range(options.rounds + WARM_UP):
        kept = times if number >= WARM_UP else Times()
        for case, calibrator in cases.items():
            with kept.stage(case, "total"):
                stage = functools.partial(kept.stage, case)
                request(predictor, calibrator, upload, threads, stage)
    print(f"{options.threads} threads, medians of {options.rounds}, ms\n")
    rows = []
    for case in cases:
        total = times.median_ms(case, "total")
        cells = [f"{times.median_ms(case, stage):.2f}" for stage in STAGES]
        rows.append(
            [case, *cells, f"{total:.2f}", f"{total / times.median_ms('none', 'total'):.3f}"]
        )
    print(table(["calibrator", *STAGES, "total", "of none"], rows))


if __name__ == "__main__":
    main()
