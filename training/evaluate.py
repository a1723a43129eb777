"""Measure a served model on labelled frames: mIoU, latency and number of parameters.

`python -m training.evaluate models/camvid-street [--data camvid] [--split val] [--threads 2]`
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnx

from app.inference.model_card import read_model_folder
from app.inference.postprocess import postprocess
from app.inference.predictor import Predictor, open_predictor
from training.data import SETS, VOID, Frame
from training.train import iou

WARM_RUNS, TIMED_RUNS = 10, 60


def confusion(predictor: Predictor, frames: list[Frame]) -> np.ndarray:
    """Count labels (rows) against predicted masks (columns) at full size, int64 [K,K]."""
    classes = predictor.folder.num_classes
    table = np.zeros((classes, classes), np.int64)
    for frame in frames:
        images, geometry = predictor.prepare(frame.image)
        logits = predictor.logits(images)[0]
        mask = postprocess(logits, logits, geometry).mask
        keep = frame.label != VOID
        pairs = frame.label[keep].astype(np.int64) * classes + mask[keep]
        table += np.bincount(pairs, minlength=table.size).reshape(table.shape)
    return table


def milliseconds(predictor: Predictor, frame: Frame) -> float:
    """Return the median milliseconds of the backbone alone on one frame."""
    images, _ = predictor.prepare(frame.image)
    array = images.numpy()
    times = []
    for run in range(WARM_RUNS + TIMED_RUNS):
        started = time.perf_counter()
        predictor.backbone(array)
        if run >= WARM_RUNS:
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def parameters(path: Path) -> int:
    """Count the floating-point values in a model file's initialisers."""
    weights = onnx.load(path).graph.initializer
    return sum(int(np.prod(w.dims)) for w in weights if w.data_type == onnx.TensorProto.FLOAT)


def main() -> None:
    """Print parameters, latency and IoU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", choices=list(SETS), default="camvid")
    parser.add_argument("--data-folder", type=Path, help="default: CAMVID_DIR and so on")
    parser.add_argument("--split", default="val")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    data = SETS[args.data]
    frames = data.frames(data.folder(args.data_folder), args.split)
    predictor = open_predictor(read_model_folder(args.folder), "cpu", args.threads)
    values = iou(confusion(predictor, frames))
    print(f"parameters {parameters(predictor.folder.path)}")
    print(f"milliseconds {milliseconds(predictor, frames[0]):.1f} at {args.threads} threads")
    for name, value in zip(data.classes, values, strict=True):
        print(f"  {name:12} {value:.3f}")
    print(f"mIoU on {args.split} ({len(frames)} frames): {np.nanmean(values):.4f}")


if __name__ == "__main__":
    main()
