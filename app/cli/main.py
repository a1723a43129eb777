"""`segcal`: serve, segment, calibrate, evaluate, and manage models and calibrators."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from app import __version__
from app.cli.flags import name_flags
from app.cli.lazy import LazyGroup, add_lazily
from app.errors import SegcalError

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(cls=LazyGroup, no_args_is_help=True, context_settings=HELP, help=__doc__)
models = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Models that can be served.")
calibrators = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Fitted calibrators.")
jobs = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Calibration jobs of a service.")

add_lazily(app, "serve", "app.cli.serve:serve_command", "Serve all models over HTTP.")
add_lazily(
    app, "segment", "app.cli.segment:segment_command",
    "Write masks, confidence maps and a table of per-image figures.",
)  # fmt: skip
add_lazily(
    app, "calibrate", "app.cli.calibrate:calibrate_command",
    "Fit a calibrator on labelled data, publish it, and activate it if it is better.",
)  # fmt: skip
add_lazily(
    app, "merge", "app.cli.merge:merge_command",
    "Fit on all shards of a set, as one `segcal calibrate` of the whole set does.",
)  # fmt: skip
add_lazily(
    app, "evaluate", "app.cli.evaluate:evaluate_command",
    "Evaluate a model or a running service on labelled images, and write a page about it.",
)  # fmt: skip
add_lazily(
    app, "pseudo-label", "app.cli.pseudo_label:pseudo_label_command",
    "Write label maps for training whose uncertain pixels have the ignore value.",
)  # fmt: skip
add_lazily(
    app, "map-labels", "app.cli.map_labels:map_labels_command",
    "Write label maps of a data set in another form as class ids of its taxonomy.",
)  # fmt: skip
add_lazily(
    models, "list", "app.cli.models:list_command",
    "List the models, with the reason for each that cannot be loaded.",
)  # fmt: skip
add_lazily(
    models, "import", "app.cli.models:import_command",
    "Import a model file, or a network of a framework, if it loads and matches its card.",
)  # fmt: skip
add_lazily(
    models, "quantize", "app.cli.models:quantize_command",
    "Quantise an ONNX model to int8, compare it with the original, and add it as a new model.",
)  # fmt: skip
add_lazily(
    models, "export", "app.cli.export_model:export_command",
    "Write one ONNX file that computes labels and confidence as the service does.",
)  # fmt: skip
add_lazily(
    calibrators, "list", "app.cli.calibrators:list_command",
    "List a model's calibrators, newest first; `*` marks the active one.",
)  # fmt: skip
add_lazily(
    calibrators, "activate", "app.cli.calibrators:activate_command",
    "Activate a version, which may be an earlier one.",
)  # fmt: skip
add_lazily(
    calibrators, "archive", "app.cli.calibrators:archive_command",
    "Pack a version's manifest, parameters and report into a zip file.",
)  # fmt: skip
add_lazily(
    calibrators, "delete", "app.cli.calibrators:delete_command",
    "Delete a version that is not active.",
)  # fmt: skip
add_lazily(jobs, "list", "app.cli.jobs:list_command", "List the calibration jobs, newest first.")
add_lazily(
    jobs, "cancel", "app.cli.jobs:cancel_command",
    "Cancel a job; of a failed or interrupted one the upload is deleted.",
)  # fmt: skip
add_lazily(
    jobs, "retry", "app.cli.jobs:retry_command",
    "Fit a failed or interrupted job again, with its stored upload.",
)  # fmt: skip
app.add_typer(models, name="models")
app.add_typer(calibrators, name="calibrators")
app.add_typer(jobs, name="jobs")


def print_version(*, requested: bool) -> None:
    """Print the version and exit, where it is requested."""
    if requested:
        print(f"segcal {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Parse the options before the command."""


def main() -> None:
    """Run the command line; print a SegcalError as one line and exit with 2."""
    try:
        app(prog_name="segcal")
    except SegcalError as error:
        print_error(error)
        sys.exit(2)


def print_error(error: SegcalError) -> None:
    """Print an error as one line."""
    text = f"error: {name_flags(str(error))}"
    Console(stderr=True).print(text, style="red", markup=False, soft_wrap=True)
