"""The trial of docs/pseudo-labels.md: divide nuclei's stained images, add pseudo-labels, measure.

`python -m training.pseudo_labels split NUCLEI_DIR data`, `… add data KIND`, `… measure data runs`
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from training.data import NUCLEI, VOID, Frame, load_frames
from training.networks import open_network
from training.train import confusion, iou

PARTS = (*["labelled"] * 2, *["calibration"] * 2, *["unlabelled"] * 4, *["test"] * 3)
COPIES = 4  # of each stained image in a training set, in which they are few
BASELINE = "baseline"
SAMPLES = 2000  # of the bootstrap


def split_stained(nuclei: Path, out: Path) -> None:
    """Write the parts of the stained images, and the training set of the baseline, to folders."""
    for index, image in enumerate(sorted((nuclei / "shift").glob("*.png"))):
        part = PARTS[index % len(PARTS)]
        copy_pair(image, nuclei / "shiftannot" / image.name, out / part, image.stem)
    base = out / BASELINE
    for kind in ("", "annot"):
        shutil.copytree(nuclei / f"train{kind}", base / f"train{kind}")
        shutil.copytree(out / f"test{kind}", base / f"val{kind}")
    add_copies(out / "labelled", out / "labelledannot", base / "train")


def add_pseudo_labels(out: Path, kind: str) -> None:
    """Write the training set `baseline-KIND`: the baseline's with the label maps in `KIND`."""
    target = out / f"{BASELINE}-{kind}"
    shutil.copytree(out / BASELINE, target)
    add_copies(out / "unlabelled", out / kind, target / "train")


def add_copies(images: Path, labels: Path, target: Path) -> None:
    """Copy the images of a folder, with their label maps, COPIES times into a training set."""
    for image in sorted(images.glob("*.png")):
        for copy in range(COPIES):
            copy_pair(image, labels / image.name, target, f"{image.stem}-{copy}")


def copy_pair(image: Path, labels: Path, target: Path, stem: str) -> None:
    """Copy an image to a folder, and its label map to the folder `<name>annot` beside it."""
    for source, folder in ((image, target), (labels, target.with_name(f"{target.name}annot"))):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / f"{stem}.png")


def measure_labels(out: Path, kind: str) -> str:
    """Return a line on label maps in `KIND`: accepted fraction, accuracy, precision by class."""
    classes = len(NUCLEI.classes)
    table = np.zeros((classes, classes), np.int64)
    pixels = 0
    truth = load_frames(out / "unlabelled", out / "unlabelledannot", classes)
    labels = load_frames(out / "unlabelled", out / kind, classes)
    for true, found in zip(truth, labels, strict=True):
        accepted = found.label != VOID
        np.add.at(table, (true.label[accepted], found.label[accepted]), 1)
        pixels += accepted.size
    total, by_class = max(table.sum(), 1), table.sum(0)
    return (
        f"{kind}: accepted {table.sum() / pixels:.3f}, accuracy {np.trace(table) / total:.3f}, "
        f"classes {np.round(by_class / total, 3)}, "
        f"precision {np.round(np.diag(table) / by_class.clip(1), 3)}"
    )


def measure_networks(out: Path, runs: Path) -> None:
    """Print each run's IoU on the test images, and the interval of its difference to the baseline.

    The difference of mIoU has a bootstrap interval of 95 % over the images.
    """
    frames = load_frames(out / "test", out / "testannot", len(NUCLEI.classes))
    names = sorted(path.name for path in runs.iterdir() if (path / "averaged.pt").exists())
    tables = {name: count_by_image(runs / name / "averaged.pt", frames) for name in names}
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(frames), (SAMPLES, len(frames)))
    for name, table in tables.items():
        ious = iou(table.sum(0))
        differences = [
            np.nanmean(iou(table[draw].sum(0))) - np.nanmean(iou(tables[BASELINE][draw].sum(0)))
            for draw in draws
        ]
        low, high = np.quantile(differences, [0.025, 0.975])
        print(
            f"{name}: mIoU {np.nanmean(ious):.4f}, IoU {np.round(ious, 3)}, "
            f"difference {low:.3f} to {high:.3f}"
        )


def count_by_image(weights: Path, frames: list[Frame]) -> np.ndarray:
    """Count labels against predictions of each image, int64 [n,K,K]."""
    net = open_network(weights).eval()
    return np.stack([confusion(net, [frame], len(NUCLEI.classes)) for frame in frames])


def main() -> None:
    """Run one step of the trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("split", "add", "measure"))
    parser.add_argument("first", type=Path, help="the nuclei set for split, else the data")
    parser.add_argument("second", help="the data for split, a kind for add, the runs for measure")
    args = parser.parse_args()
    if args.step == "split":
        split_stained(args.first, Path(args.second))
    elif args.step == "add":
        add_pseudo_labels(args.first, args.second)
    else:
        for kind in ("plain", "calibrated"):
            print(measure_labels(args.first, kind))
        measure_networks(args.first, Path(args.second))


if __name__ == "__main__":
    main()
