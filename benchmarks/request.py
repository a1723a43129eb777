"""Measure the stages of a request in one process, with and without a calibrator.

`python -m benchmarks.request [--image FILE] [--rounds 60]` prints median milliseconds of one image
segmented alternately with `calibrator=none`, with the active calibrator, and with an unfitted one
of each method in METHODS, whose cost equals a fitted one's.
"""

import argparse
import statistics
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
from app.serving.pipeline import StageTimer, predict_image
from app.settings import available_cores
from app.storage.artifacts import ArtifactStore
from benchmarks.harness import synthetic_image, table

METHODS = ("temperature", "selective", "matrix", "isotonic", "lts", "cdc")
STAGES = (
    "decode", "preprocess", "inference", "calibration", "encode", "class statistics", "mask",
    "confidence",
)  # fmt: skip
MAX_PIXELS = 50_000_000
WARM_UP = 3  # rounds


def request(
    predictor: Predictor, calibrator: Calibrator | None, upload: bytes, workers: RowWorkers
) -> dict[str, float]:
    """Run one JSON answer with mask and confidence; return milliseconds by stage."""
    timer = StageTimer()
    with timer.stage("total"):
        with timer.stage("decode"):
            image = decode_image(upload, MAX_PIXELS)
        prediction = predict_image(image, predictor, calibrator, workers=workers, timer=timer)
        with timer.stage("class statistics"):
            class_statistics(prediction)
        with timer.stage("mask"):
            encode.mask_png(prediction.mask, predictor.folder.palette)
        with timer.stage("confidence"):
            encode.confidence_png(prediction.confidence)
    return timer.stages


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
    workers = RowWorkers(options.threads)
    taken: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(options.rounds + WARM_UP):
        for case, calibrator in cases.items():
            taken[case].append(request(predictor, calibrator, upload, workers))
    print(f"{options.threads} threads, medians of {options.rounds}, ms\n")
    medians = {
        case: {
            stage: statistics.median(each[stage] for each in times[WARM_UP:]) for stage in times[0]
        }
        for case, times in taken.items()
    }
    rows = [
        [
            case,
            *(f"{found[stage]:.2f}" for stage in STAGES),
            f"{found['total']:.2f}",
            f"{found['total'] / medians['none']['total']:.3f}",
        ]
        for case, found in medians.items()
    ]
    print(table(["calibrator", *STAGES, "total", "of none"], rows))


if __name__ == "__main__":
    main()
