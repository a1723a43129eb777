"""Time, peak memory and likelihood of our fits beside fiducio's and netcal's, on the same pixels.

    python -m benchmarks.fits [--shape street|many] [--methods M ...] [--limit S]

Logits are made up, of a network that is over-confident and confuses some classes: 1.1 million
pixels of 11 classes, or 2 million of 150. Each fit has a process of its own, two threads, and its
library's own defaults; one that takes longer than the limit is ended, and its time is a bound from
below. Of fiducio, whose fits are 200 equal steps, a few are timed then, and "~" tells what all of
them would take. The likelihood is over all the pixels that were fitted on. Libraries that are not
installed are left out.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.registry import build

SHAPES = {"street": (101, 10_900, 11), "many": (500, 4_000, 150)}  # images, pixels of each, classes
METHODS = (
    "temperature", "vector", "vector_ti", "matrix_ti", "dirichlet", "ets", "cdc", "cmsap", "cmsop",
    "isotonic", "selective", "contextual",
)  # fmt: skip
FIDUCIO = {
    "temperature": "TemperatureScaling",
    "vector": "VectorScaling",
    "matrix_ti": "TranslationInvariantMatrixScaling",
    "dirichlet": "DirichletCalibration",
    "ets": "EnsembleTemperatureScaling",
    "cdc": "ClassConditionalMatrixScaling",
    "cmsap": "ArgmaxPreservingMatrixScaling",
    "cmsop": "OrderPreservingMatrixScaling",
}
NETCAL = {"temperature": "TemperatureScaling", "vector_ti": "LogisticCalibration"}
STEPS, FEW_STEPS = 200, (1, 5)  # of fiducio's; what loading takes is in either of the two
LIBRARIES = ("ours", "fiducio", "netcal")
ROWS = 1 << 16  # whose likelihood is taken at a time

Probabilities = Callable[[Tensor], Tensor]


class Figures(NamedTuple):
    """What one fit took and reached."""

    seconds: float
    peak_mib: float
    nll: float


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fits", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="street")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one fit")
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("LIBRARY", "METHOD", "FOLDER"),
                        help=argparse.SUPPRESS)  # fmt: skip
    options = parser.parse_args()
    if options.one:
        library, method, folder = options.one
        print(
            json.dumps(fit_one(library, method, Path(folder), SHAPES[options.shape], options.steps))
        )
        return
    with tempfile.TemporaryDirectory(prefix="segcal-fits-") as name:
        write_pixels(Path(name), *SHAPES[options.shape])
        print(f"{options.shape}: {SHAPES[options.shape]} images, pixels of each, classes\n")
        print("| method | library | s | of ours | peak MiB | NLL |\n|---|---|---:|---:|---:|---:|")
        for method in options.methods:
            compare(method, Path(name), options.shape, options.limit)


def compare(method: str, folder: Path, shape: str, limit: float) -> None:
    """Fit one method with every library that has it, and print their rows."""
    ours = None
    for library in LIBRARIES:
        if not offers(library, method):
            continue
        try:
            found = run(library, method, folder, shape, limit)
        except subprocess.TimeoutExpired:
            ratio = "" if ours is None else f"> {limit / ours:.0f}"
            print(f"| {method} | {library} | > {limit:.0f} | {ratio} | | |", flush=True)
            if library == "fiducio" and ours is not None:
                estimate = all_steps(method, folder, shape, limit)
                print(f"| | | ~ {estimate:.0f} | ~ {estimate / ours:.0f} | | |", flush=True)
            continue
        except subprocess.CalledProcessError as error:
            print(f"| {method} | {library} | {error.stderr.splitlines()[-1][:80]} | | | |")
            continue
        ours = ours or found.seconds
        print(
            f"| {method} | {library} | {found.seconds:.2f} | {found.seconds / ours:.1f} "
            f"| {found.peak_mib:.0f} | {found.nll:.5f} |",
            flush=True,
        )


def run(
    library: str, method: str, folder: Path, shape: str, limit: float, steps: int | None = None
) -> Figures:
    """Fit once in a process of its own; raises what subprocess does."""
    command = [sys.executable, "-m", "benchmarks.fits", f"--shape={shape}"]
    command += ["--one", library, method, str(folder)]
    command += [] if steps is None else [f"--steps={steps}"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=True, capture_output=True, text=True, timeout=limit,
    )  # fmt: skip
    return Figures(*json.loads(done.stdout.splitlines()[-1]))


def all_steps(method: str, folder: Path, shape: str, limit: float) -> float:
    """Say from a few what all of fiducio's steps would take, in seconds; NaN beyond the limit."""
    few, more = FEW_STEPS
    try:
        first, second = (
            run("fiducio", method, folder, shape, limit, steps).seconds for steps in FEW_STEPS
        )
    except subprocess.TimeoutExpired:
        return float("nan")
    return first + (STEPS - few) * (second - first) / (more - few)


def offers(library: str, method: str) -> bool:
    """Tell whether a library has a method and is there."""
    known = {"fiducio": FIDUCIO, "netcal": NETCAL}.get(library)
    return known is None or (method in known and importlib.util.find_spec(library) is not None)


def write_pixels(folder: Path, images: int, pixels: int, classes: int) -> None:
    """Write made-up logits float32 [M,K] and labels int64 [M]."""
    rng = np.random.default_rng(0)
    confusion = np.eye(classes) + 0.1 * rng.standard_normal((classes, classes)) / classes**0.5
    total = images * pixels
    logits = np.lib.format.open_memmap(folder / "z.npy", "w+", np.float32, (total, classes))
    labels = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (total,))
    for image in range(images):
        rows = slice(image * pixels, (image + 1) * pixels)
        truth = 2 * rng.standard_normal((pixels, classes)).astype(np.float32)
        logits[rows] = 2 * truth
        labels[rows] = (truth @ confusion.T + rng.gumbel(size=truth.shape)).argmax(axis=1)


def fit_one(
    library: str, method: str, folder: Path, shape: tuple[int, int, int], steps: int | None
) -> Figures:
    """Fit once in this process; fiducio with so many steps, if that is said."""
    torch.set_num_threads(2)
    logits = torch.from_numpy(np.load(folder / "z.npy"))
    labels = torch.from_numpy(np.load(folder / "y.npy"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if library == "ours":
        predict = fit_ours(method, logits, labels, shape)
    elif library == "fiducio":
        predict = fit_fiducio(method, logits, labels, steps)
    else:
        predict = fit_netcal(method, logits, labels)
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    total = 0.0
    for rows in torch.split(torch.arange(len(labels)), ROWS):
        right = predict(logits[rows]).gather(1, labels[rows, None]).double()
        total -= right.clamp_min(1e-30).log().sum().item()
    return Figures(seconds, peak, total / len(labels))


def fit_ours(
    method: str, logits: Tensor, labels: Tensor, shape: tuple[int, int, int]
) -> Probabilities:
    """Fit as a refit does, image by image."""
    _images, pixels, classes = shape
    parts = zip(torch.split(logits, pixels), torch.split(labels, pixels), strict=True)
    data = InMemory(classes, [LabelledImage(z.T, y) for z, y in parts])
    calibrator = build(method, classes)
    calibrator.fit(data, FitContext())
    calibrator.eval()
    with torch.no_grad():
        return lambda rows: calibrator(rows).exp().detach()


def fit_fiducio(method: str, logits: Tensor, labels: Tensor, steps: int | None) -> Probabilities:
    """Fit with fiducio's defaults, or so many steps."""
    fiducio: Any = importlib.import_module("fiducio")
    fitted = getattr(fiducio, FIDUCIO[method])(max_iter=steps).fit(logits, labels)
    return lambda rows: torch.as_tensor(fitted.predict_proba(rows))


def fit_netcal(method: str, logits: Tensor, labels: Tensor) -> Probabilities:
    """Fit with netcal's defaults; it takes probabilities.

    Its minimiser takes differences of the loss, which are all 0 in float32: it would stay where it
    starts.
    """
    scaling: Any = importlib.import_module("netcal.scaling")
    fitted = getattr(scaling, NETCAL[method])()
    fitted.fit(logits.double().softmax(dim=1).numpy(), labels.numpy())

    def predict(rows: Tensor) -> Tensor:
        found: NDArray[np.floating] = fitted.transform(rows.double().softmax(dim=1).numpy())
        return torch.from_numpy(np.asarray(found, np.float64))

    return predict


if __name__ == "__main__":
    main()
