"""Run `python -m benchmarks.calibration fits|refit [options]`.

`fits` compares the fits of this project (segcal) with those of fiducio and netcal on the same
synthetic pixels. Each fit runs in a new process with two threads and its library's defaults; a fit
beyond the limit is ended, so that its time is a lower bound. Of fiducio's 200 equal steps a few are
then timed, and "~" extrapolates. The negative log-likelihood is over all pixels of the fit.

`refit` measures a fit with `method=auto` on an upload of synthetic logits: float32 maps (`dense`)
or a float16 table (`table`). It runs in a new process as well.
"""

import argparse
import importlib
import importlib.util
import os
import subprocess
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
from app.calibration.registry import auto_methods, build
from app.calibration.selection import fit
from app.datasets.uploads import Limits, open_upload, unpack
from app.inference.predictor import Predictor
from benchmarks.harness import MIB, call_in_process, process_bytes, run_command

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
FIDUCIO_STEPS, TIMED_STEPS = 200, (1, 5)  # the difference of two timings excludes loading
LIBRARIES = ("segcal", "fiducio", "netcal")
CHUNK_PIXELS = 1 << 16  # whose likelihood is computed at once
UPLOADS = {"dense": (101, 120 * 90, 11), "table": (20, 56 * 56, 150)}
VOID = 255
UNLIMITED = 1 << 50
THREADS = "2"

Probabilities = Callable[[Tensor], Tensor]


class FitResult(NamedTuple):
    """Seconds, peak memory in MiB and mean negative log-likelihood of a fit."""

    seconds: float
    peak_mib: float
    nll: float


class RefitResult(NamedTuple):
    """Seconds, memory and outcome of a refit; seconds also by stage."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    chosen: str
    skipped: list[str]
    stages: dict[str, float]


def fits() -> None:
    """Measure time, memory and likelihood of fits beside fiducio's and netcal's."""
    parser = argparse.ArgumentParser(description=fits.__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="street")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one fit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segcal-fits-") as name:
        write_pixels(Path(name), *SHAPES[options.shape])
        print(f"{options.shape}: {SHAPES[options.shape]} images, pixels of each, classes\n")
        print("| method | library | s | of segcal's | peak MiB | NLL |")
        print("|---|---|---:|---:|---:|---:|")
        for method in options.methods:
            compare(method, name, options.shape, options.limit)


def compare(method: str, folder: str, shape: str, limit: float) -> None:
    """Fit one method with every library that has it, and print a row for each."""
    own = None
    for library in LIBRARIES:
        if not offers(library, method):
            continue
        try:
            found = run(library, method, folder, shape, limit)
        except subprocess.TimeoutExpired:
            ratio = "" if own is None else f"> {limit / own:.0f}"
            print(f"| {method} | {library} | > {limit:.0f} | {ratio} | | |", flush=True)
            if library == "fiducio" and own is not None:
                estimate = extrapolate(method, folder, shape, limit)
                print(f"| | | ~ {estimate:.0f} | ~ {estimate / own:.0f} | | |", flush=True)
            continue
        except subprocess.CalledProcessError as error:
            print(f"| {method} | {library} | {error.stderr.splitlines()[-1][:80]} | | | |")
            continue
        own = own or found.seconds
        print(
            f"| {method} | {library} | {found.seconds:.2f} | {found.seconds / own:.1f} "
            f"| {found.peak_mib:.0f} | {found.nll:.5f} |",
            flush=True,
        )


def run(
    library: str, method: str, folder: str, shape: str, limit: float, steps: int | None = None
) -> FitResult:
    """Fit once in a new process; raises what `call_in_process` raises."""
    arguments = (library, method, folder, shape, steps)
    threads = {"OMP_NUM_THREADS": THREADS}
    return FitResult(*call_in_process(fit_one, *arguments, environment=threads, timeout_s=limit))


def extrapolate(method: str, folder: str, shape: str, limit: float) -> float:
    """Return the seconds of all of fiducio's steps from a few; NaN beyond the limit."""
    few, more = TIMED_STEPS
    try:
        first, second = (
            run("fiducio", method, folder, shape, limit, steps).seconds for steps in TIMED_STEPS
        )
    except subprocess.TimeoutExpired:
        return float("nan")
    return first + (FIDUCIO_STEPS - few) * (second - first) / (more - few)


def offers(library: str, method: str) -> bool:
    """Return whether a library is installed and has a method."""
    known = {"fiducio": FIDUCIO, "netcal": NETCAL}.get(library)
    return known is None or (method in known and importlib.util.find_spec(library) is not None)


def confusion_matrix(rng: np.random.Generator, classes: int) -> NDArray[np.float64]:
    """Return the matrix [K,K] that turns an over-confident network's logits into true ones."""
    noise: NDArray[np.float64] = rng.standard_normal((classes, classes)) / classes**0.5
    return np.eye(classes) + 0.1 * noise


def write_pixels(folder: Path, images: int, pixels: int, classes: int) -> None:
    """Write synthetic logits float32 [M,K] and labels int64 [M]."""
    rng = np.random.default_rng(0)
    confusion = confusion_matrix(rng, classes)
    total = images * pixels
    logits = np.lib.format.open_memmap(folder / "z.npy", "w+", np.float32, (total, classes))
    labels = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (total,))
    for image in range(images):
        rows = slice(image * pixels, (image + 1) * pixels)
        truth = 2 * rng.standard_normal((pixels, classes)).astype(np.float32)
        logits[rows] = 2 * truth
        labels[rows] = (truth @ confusion.T + rng.gumbel(size=truth.shape)).argmax(axis=1)


def fit_one(library: str, method: str, folder: str, shape: str, steps: int | None) -> FitResult:
    """Fit once in this process; fiducio with `steps` steps where given."""
    torch.set_num_threads(int(THREADS))
    logits = torch.from_numpy(np.load(Path(folder) / "z.npy"))
    labels = torch.from_numpy(np.load(Path(folder) / "y.npy"))
    before = process_bytes(os.getpid(), "VmHWM")
    started = time.perf_counter()
    if library == "segcal":
        predict = fit_segcal(method, logits, labels, SHAPES[shape])
    elif library == "fiducio":
        predict = fit_fiducio(method, logits, labels, steps)
    else:
        predict = fit_netcal(method, logits, labels)
    seconds = time.perf_counter() - started
    peak = (process_bytes(os.getpid(), "VmHWM") - before) / MIB
    total = 0.0
    for rows in torch.split(torch.arange(len(labels)), CHUNK_PIXELS):
        probabilities = predict(logits[rows]).gather(1, labels[rows, None]).double()
        total -= probabilities.clamp_min(1e-30).log().sum().item()
    return FitResult(seconds, peak, total / len(labels))


def fit_segcal(
    method: str, logits: Tensor, labels: Tensor, shape: tuple[int, int, int]
) -> Probabilities:
    """Fit image by image, as a refit does."""
    _images, pixels, classes = shape
    parts = zip(torch.split(logits, pixels), torch.split(labels, pixels), strict=True)
    data = InMemory(classes, [LabelledImage(z.T, y) for z, y in parts])
    calibrator = build(method, classes)
    calibrator.fit(data, FitContext())
    calibrator.eval()
    with torch.no_grad():
        return lambda rows: calibrator(rows).exp().detach()


def fit_fiducio(method: str, logits: Tensor, labels: Tensor, steps: int | None) -> Probabilities:
    """Fit with fiducio's defaults, or with `steps` steps."""
    fiducio: Any = importlib.import_module("fiducio")
    fitted = getattr(fiducio, FIDUCIO[method])(max_iter=steps).fit(logits, labels)
    return lambda rows: torch.as_tensor(fitted.predict_proba(rows))


def fit_netcal(method: str, logits: Tensor, labels: Tensor) -> Probabilities:
    """Fit with netcal's defaults on probabilities.

    In float32 the finite differences of its minimiser are all 0, and it returns its start value.
    """
    scaling: Any = importlib.import_module("netcal.scaling")
    fitted = getattr(scaling, NETCAL[method])()
    fitted.fit(logits.double().softmax(dim=1).numpy(), labels.numpy())

    def predict(rows: Tensor) -> Tensor:
        found: NDArray[np.floating] = fitted.transform(rows.double().softmax(dim=1).numpy())
        return torch.from_numpy(np.asarray(found, np.float64))

    return predict


def refit() -> None:
    """Measure time and memory of a refit with method=auto."""
    parser = argparse.ArgumentParser(description=refit.__doc__)
    parser.add_argument("--shape", choices=UPLOADS, default="dense")
    parser.add_argument("--images", type=int)
    parser.add_argument("--pixels", type=int, help="of an image")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1, help="the median by wall time is printed")
    options = parser.parse_args()
    given = (options.images, options.pixels, options.classes)
    sizes = [one or usual for one, usual in zip(given, UPLOADS[options.shape], strict=True)]
    with tempfile.TemporaryDirectory(prefix="segcal-refit-") as name:
        write_upload(Path(name), options.shape, *sizes)
        arguments = (name, sizes[2], options.threads)
        runs = [RefitResult(*call_in_process(refit_one, *arguments)) for _ in range(options.runs)]
    median = sorted(runs, key=lambda one: one.wall_s)[len(runs) // 2]
    print(f"{options.shape}: {sizes[0]} images x {sizes[1]} pixels x {sizes[2]} classes")
    print(f"{median.wall_s:.1f} s, {median.cpu_s:.1f} s of CPU, peak {median.peak_mib:.0f} MiB")
    print(f"chosen: {median.chosen}; skipped: {', '.join(median.skipped) or 'none'}")
    for stage, seconds in median.stages.items():
        print(f"  {seconds:8.2f} s  {stage}")


def refit_one(upload: str, classes: int, threads: int) -> RefitResult:
    """Fit on an upload in this process, as a job does."""
    torch.set_num_threads(threads)
    stages: dict[str, float] = {}
    current, last = "starting", time.perf_counter()

    def progress(stage: str, _fraction: float) -> None:
        nonlocal current, last
        now = time.perf_counter()
        stages[current] = stages.get(current, 0.0) + now - last
        current, last = stage, now

    data = open_upload(
        Path(upload), classes, VOID, UNLIMITED, no_predictor, lambda _stage, _fraction: None
    )
    wall, cpu = time.perf_counter(), time.process_time()
    candidates = auto_methods(allow_label_changes=False)
    outcome = fit(data, candidates, FitContext(seed=0, progress=progress))
    progress("end", 1.0)
    return RefitResult(
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        peak_mib=process_bytes(os.getpid(), "VmHWM") / MIB,
        chosen=outcome.chosen.method,
        skipped=list(outcome.skipped),
        stages=stages,
    )


def write_upload(folder: Path, shape: str, images: int, pixels: int, classes: int) -> None:
    """Write synthetic logits and labels, image by image, as an unpacked upload."""
    rng = np.random.default_rng(0)
    confusion = confusion_matrix(rng, classes)
    kind = np.float32 if shape == "dense" else np.float16
    grid = (images, classes, 1, pixels) if shape == "dense" else (images * pixels, classes)
    kept = (images, 1, pixels) if shape == "dense" else (images * pixels,)
    logits = np.lib.format.open_memmap(folder / "logits", "w+", kind, grid)
    labels = np.lib.format.open_memmap(folder / "labels", "w+", np.uint8, kept)
    for index in range(images):
        truth = 2 * rng.standard_normal((classes, pixels)).astype(np.float32)
        noise = rng.gumbel(size=truth.shape)
        rows = slice(index * pixels, (index + 1) * pixels)
        if shape == "dense":
            logits[index, :, 0] = 2 * truth
            labels[index, 0] = (confusion @ truth + noise).argmax(axis=0)
        else:
            logits[rows] = 2 * truth.T
            labels[rows] = (confusion @ truth + noise).argmax(axis=0)
    logits.flush()
    labels.flush()
    if shape == "table":
        with (folder / "image_index").open("wb") as file:
            np.save(file, np.repeat(np.arange(images), pixels))
    unpack(folder, Limits(UNLIMITED, UNLIMITED, UNLIMITED))


def no_predictor() -> Predictor:
    """Raise AssertionError: an upload of logits needs no model."""
    raise AssertionError("expected an upload of logits, which needs no model")


if __name__ == "__main__":
    run_command("benchmarks.calibration", {"fits": fits, "refit": refit})
