"""`segcal`: serve, segment, calibrate, and look after models and calibrators."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app import batch
from app.calibrator_commands import activate_command, archive_command, list_command
from app.connection import Connection
from app.errors import ArgumentError, SegcalError
from app.evaluate_command import evaluate_command
from app.fits import Service, Wanted, fit_here
from app.inference.card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from app.main import find_model, model_folders, run
from app.model_commands import import_command, quantize_command
from app.options import ApiTokenOption, ModelOption, TokenOption, UrlOption
from app.recalibration import Activate
from app.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
models_app = typer.Typer(no_args_is_help=True, help="Models that can be served.")
calibrators_app = typer.Typer(no_args_is_help=True, help="Fitted calibrators.")
models_app.command("import")(import_command)
models_app.command("quantize")(quantize_command)
calibrators_app.command("list")(list_command)
calibrators_app.command("activate")(activate_command)
calibrators_app.command("archive")(archive_command)
app.add_typer(models_app, name="models")
app.add_typer(calibrators_app, name="calibrators")

console = Console(stderr=True)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
) -> None:
    """Serve all models over HTTP."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    run(load_settings(), host, port)


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results.")],
    url: UrlOption = None,
    model: ModelOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Write masks, confidence maps and a CSV of per-image figures."""
    settings = load_settings()
    source: batch.Source = (
        batch.Remote(Connection(url, token), model)
        if url
        else batch.Local(settings, predictor_named(settings, model))
    )
    with Progress(console=console) as progress:
        task = progress.add_task("segmenting", total=len(images))
        failed = batch.segment_all(images, out, source, lambda: progress.advance(task))
    for path, reason in failed.items():
        console.print(f"{path}: {reason}", style="red", markup=False, soft_wrap=True)
    console.print(f"{len(images) - len(failed)} of {len(images)} images, results in {out}")
    if failed:
        raise typer.Exit(1)


@app.command(name="calibrate")
def calibrate_command(
    logits: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help=".npz, .npy or .safetensors."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Pictures, for the model.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(exists=True, help="Label maps, or the logits' labels.")
    ] = None,
    image_index: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Of a table's rows.")
    ] = None,
    drive_index: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The images' drives, which stay together."),
    ] = None,
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="auto, or one method's name.")] = "auto",
    activate: Annotated[Activate, typer.Option()] = "if_better",
    allow_label_changes: bool = False,
    weather: Annotated[
        bool, typer.Option(help="Learn from copies of the pictures in bad weather as well.")
    ] = False,
    ignore_index: Annotated[
        int | None, typer.Option(help="Label of void pixels; default: the card's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    note: str = "",
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Fit a calibrator on labelled data, publish it, and activate it if it is better."""
    given = {
        "logits": logits, "images": images, "labels": labels, "image_index": image_index,
        "drive_index": drive_index,
    }  # fmt: skip
    paths = {field: path for field, path in given.items() if path is not None}
    check_sources(paths)
    wanted = Wanted(paths, method, activate, allow_label_changes, weather, ignore_index, seed, note)
    with Progress(console=console) as progress:
        task = progress.add_task("starting", total=1.0)

        def on_progress(stage: str, share: float) -> None:
            progress.update(task, description=stage, completed=share)

        if url:
            done = Service(Connection(url, token)).fit(wanted, model, on_progress)
        else:
            settings = load_settings()
            done = fit_here(wanted, find_model(settings, model), settings, on_progress)
    print_candidates(done.report)
    decision = done.report["decision"]
    state = "active" if decision["activated"] else "not activated"
    console.print(f"{done.calibrator} is {state}: {decision['why']}", markup=False)


def check_sources(paths: dict[str, Path]) -> None:
    """Refuse what is neither logits nor pictures with labels."""
    with_pictures = (
        set(paths) - {"drive_index"} == {"images", "labels"} and paths["labels"].is_dir()
    )
    labels_are_files = "labels" not in paths or paths["labels"].is_file()
    with_logits = "logits" in paths and "images" not in paths and labels_are_files
    if not (with_pictures or with_logits):
        raise ArgumentError(
            "expected --logits, with --labels unless inside, or the folders --images and "
            f"--labels, got {' '.join(f'--{field}' for field in paths) or 'neither'}"
        )


app.command(name="evaluate")(evaluate_command)


@models_app.command("list")
def list_models() -> None:
    """List the models directory, with the reason where one can't be served."""
    table = Table("model", "classes", "file", "sha256", "title")
    for path in model_folders(load_settings().models_dir):
        try:
            folder = read_model_folder(path)
        except SegcalError as error:
            table.add_row(path.name, "", "", "", f"refused: {error}")
            continue
        card = folder.card
        table.add_row(card.name, str(folder.num_classes), card.file, folder.sha256[:12], card.title)
    Console().print(table)


def predictor_named(settings: Settings, name: str | None) -> Predictor:
    """Open one model by name."""
    return open_predictor(find_model(settings, name), settings.device, settings.threads)


def print_candidates(report: dict[str, object]) -> None:
    """Show the figures of a report's candidates."""
    rows = report["candidates"]
    assert isinstance(rows, list)  # noqa: S101 - the report's own shape
    columns = ("method", "ece_image", "ece_pooled", "nll", "auroc_misprediction", "aurc", "miou")
    table = Table(*columns, title="on held-out images")
    for row in [report["uncalibrated"], *rows]:
        values = [row[column] for column in columns]
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)


def main() -> None:
    """Run the command line; our own errors end it with one sentence."""
    try:
        app()
    except SegcalError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
