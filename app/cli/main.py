"""`segcal`: serve, segment, calibrate, evaluate, and manage models and calibrators."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from app.cli import calibrators
from app.cli.calibrate import calibrate_command
from app.cli.evaluate import evaluate_command
from app.cli.models import import_command, list_command, quantize_command
from app.cli.segment import segment_command
from app.errors import SegcalError
from app.main import run
from app.settings import load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
models_app = typer.Typer(no_args_is_help=True, help="Models that can be served.")
calibrators_app = typer.Typer(no_args_is_help=True, help="Fitted calibrators.")
app.command("segment")(segment_command)
app.command("calibrate")(calibrate_command)
app.command("evaluate")(evaluate_command)
models_app.command("list")(list_command)
models_app.command("import")(import_command)
models_app.command("quantize")(quantize_command)
calibrators_app.command("list")(calibrators.list_command)
calibrators_app.command("activate")(calibrators.activate_command)
calibrators_app.command("archive")(calibrators.archive_command)
app.add_typer(models_app, name="models")
app.add_typer(calibrators_app, name="calibrators")

console = Console(stderr=True)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
) -> None:
    """Serve all models over HTTP."""
    run(load_settings(), host, port)


def main() -> None:
    """Run the command line; print a SegcalError as one line and exit with 2."""
    try:
        app()
    except SegcalError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
