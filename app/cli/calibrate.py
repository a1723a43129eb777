"""`segcal calibrate`: fit a calibrator locally or on a running service."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.calibration.dataset import ValidationSet
from app.cli.options import ModelOption, TokenOption, UrlOption
from app.client import Client, OnProgress
from app.datasets.images import ENDINGS, CachedLogits, find_pairs, read_labels
from app.datasets.uploads import (
    GROUP_INDEX,
    Limits,
    check,
    image_groups,
    open_upload,
    unpack,
    void_label,
)
from app.datasets.void_labels import find_void_label
from app.errors import ArgumentError
from app.inference.model_card import ModelFolder
from app.inference.predictor import open_predictor
from app.recalibration import calibrate, candidates, require_inputs
from app.schemas.fit import Activate, FitOptions, Routing
from app.serving.model_folders import find_model
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore

OF_DATA = ("paths", "ignore_index")

console = Console(stderr=True)


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of a fit; `paths` are files, or folders of images, by field of POST /calibrate."""

    paths: dict[str, Path]
    method: str
    activate: Activate
    allow_label_changes: bool
    ignore_index: int | None
    seed: int
    note: str
    routing: Routing | None = None
    mispredicted_temperature: float | None = None
    rejected_temperature: float | None = None
    certify: bool = True

    def without_data(self) -> FitOptions:
        """Return the options that do not concern the data; raises ArgumentError."""
        values = {name: value for name, value in vars(self).items() if name not in OF_DATA}
        return FitOptions.parse(values)


class FitResult(NamedTuple):
    """Id of a fitted calibrator, and its report with the decision on its activation."""

    calibrator: str
    report: dict[str, Any]


def fit_locally(
    options: CalibrateOptions, folder: ModelFolder, settings: Settings, progress: OnProgress
) -> FitResult:
    """Fit in this process, with the models and calibrators of the configured folders."""
    fit_options = options.without_data()
    candidates(fit_options)  # raises before files are read
    with validation_set(options, folder, settings, progress) as data:
        store = ArtifactStore(settings.artifacts_dir)
        done = calibrate(folder, data, store, fit_options, progress)
    return FitResult(done.manifest.id, done.report)


@contextmanager
def validation_set(
    options: CalibrateOptions, folder: ModelFolder, settings: Settings, progress: OnProgress
) -> Iterator[ValidationSet]:
    """Yield the validation set of images and label maps, or of a file of logits."""
    void, of_card = options.ignore_index, folder.card.output.ignore_index
    if "images" in options.paths:
        pairs = find_pairs(options.paths["images"], options.paths["labels"])
        if void is None:
            label_maps = (read_labels(pair.labels, settings.max_pixels) for pair in pairs)
            void = find_void_label(label_maps, of_card, folder.num_classes)
        predictor = open_predictor(folder, settings.device, settings.threads)
        groups = image_groups(options.paths.get(GROUP_INDEX), len(pairs))
        yield CachedLogits(predictor, pairs, void, settings.max_pixels, progress, groups)
        return
    limits = Limits(settings.max_calibration_bytes, settings.max_upload_bytes, settings.max_pixels)
    with tempfile.TemporaryDirectory(prefix="segcal-logits-") as name:
        scratch = Path(name)
        for field, path in options.paths.items():
            (scratch / field).symlink_to(path.resolve())
        unpack(scratch, limits)
        void = void_label(scratch, void, of_card, folder.num_classes, settings.max_pixels)
        contents = check(
            scratch,
            folder.num_classes,
            void,
            limits,
            reduce_zero=folder.card.output.reduce_zero_label,
        )
        require_inputs(options.method, maps=contents.maps)
        yield open_upload(
            scratch,
            folder.num_classes,
            void,
            settings.max_pixels,
            lambda: open_predictor(folder, settings.device, settings.threads),
            progress,
        )


def fit_remotely(
    options: CalibrateOptions, model: str | None, client: Client, progress: OnProgress
) -> FitResult:
    """Fit on a running service: upload the files and wait for the job to end."""
    fields = options.without_data().model_dump(exclude_none=True)
    fields["model"] = client.model(model)["name"]  # raises before files are sent
    if options.ignore_index is not None:
        fields["ignore_index"] = options.ignore_index
    with ExitStack() as stack:
        files = {
            field: stack.enter_context(zipped(path)) if path.is_dir() else path
            for field, path in options.paths.items()
        }
        queued = client.calibrate(files, fields, progress)
    job = client.follow_job(queued["id"], progress)
    return FitResult(job["calibrator"], job["report"])


@contextmanager
def zipped(folder: Path) -> Iterator[Path]:
    """Yield a temporary zip archive of a folder's images."""
    with tempfile.TemporaryDirectory(prefix="segcal-zip-") as name:
        target = Path(name) / "images.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in ENDINGS:
                    archive.write(path, path.name)
        yield target


def calibrate_command(
    logits: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help=".npz, .npy or .safetensors."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Images to run the model on.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(exists=True, help="Label maps, or the logits' labels.")
    ] = None,
    image_index: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Image of each table row.")
    ] = None,
    group_index: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Group of each image, never split."),
    ] = None,
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="auto, or one method's name.")] = "auto",
    activate: Annotated[Activate, typer.Option()] = "if_better",
    allow_label_changes: bool = False,
    ignore_index: Annotated[
        int | None, typer.Option(help="Label of void pixels; default: the card's, else 255.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    note: str = "",
    routing: Annotated[
        Routing | None, typer.Option(help="Of selective: mix its two temperatures or choose one.")
    ] = None,
    mispredicted_temperature: Annotated[
        float | None, typer.Option(help="Of selective: fix it, and the other one at 1.")
    ] = None,
    rejected_temperature: Annotated[
        float | None, typer.Option(help="Of metacal; default: rejected pixels are uniform.")
    ] = None,
    certify: Annotated[
        bool, typer.Option(help="Certify thresholds for max_error on the test images or groups.")
    ] = True,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Fit a calibrator on labelled data, publish it, and activate it if it is better."""
    given = {
        "logits": logits, "images": images, "labels": labels, "image_index": image_index,
        "group_index": group_index,
    }  # fmt: skip
    paths = {field: path for field, path in given.items() if path is not None}
    check_sources(paths)
    options = CalibrateOptions(
        paths, method, activate, allow_label_changes, ignore_index, seed, note,
        routing, mispredicted_temperature, rejected_temperature, certify,
    )  # fmt: skip
    with Progress(console=console) as progress:
        task = progress.add_task("starting", total=1.0)

        def on_progress(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)

        if url:
            with Client(url, token) as client:
                done = fit_remotely(options, model, client, on_progress)
        else:
            settings = load_settings()
            done = fit_locally(options, find_model(settings, model), settings, on_progress)
    print_candidates(done.report)
    decision = done.report["decision"]
    state = "active" if decision["activated"] else "not activated"
    console.print(f"{done.calibrator} is {state}: {decision['why']}", markup=False)


def check_sources(paths: dict[str, Path]) -> None:
    """Raise ArgumentError unless there are either logits, or images and label maps."""
    with_images = set(paths) - {"group_index"} == {"images", "labels"} and paths["labels"].is_dir()
    labels_are_files = "labels" not in paths or paths["labels"].is_file()
    with_logits = "logits" in paths and "images" not in paths and labels_are_files
    if not (with_images or with_logits):
        raise ArgumentError(
            "expected --logits, with --labels unless inside, or the folders --images and "
            f"--labels, got {' '.join(f'--{field}' for field in paths) or 'neither'}"
        )


def print_candidates(report: dict[str, object]) -> None:
    """Print the metrics of a report's candidates."""
    rows = report["candidates"]
    assert isinstance(rows, list)  # noqa: S101 - the report's own shape
    columns = ("method", "ece_image", "ece_pooled", "nll", "aurc", "miou")
    table = Table(*columns, title="on the test images", box=None)
    for row in [report["uncalibrated"], *rows]:
        values = [row[column] for column in columns]
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)
