"""Options shared by several commands of `segcal`."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.errors import ArgumentError

if TYPE_CHECKING:
    from app.client import Client

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Default: the configured model, else the default or only one."),
]
CalibratorOption = Annotated[
    str, typer.Option("--calibrator", help="A version's id, active, or none.")
]
TtaOption = Annotated[
    Literal["none", "flip", "multiscale"], typer.Option("--tta", help="Test-time augmentation.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="A running service; default: the configured folders.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Divide the work over a Ray cluster: its address, or local for this machine."
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="SEGCAL_ADMIN_TOKEN", help="The service's admin token."),
]
ApiTokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="SEGCAL_TOKEN", help="One of the service's API tokens."),
]


def connect(url: str | None, token: str | None) -> "AbstractContextManager[Client | None]":
    """Return a client of the service at `url`, or None, for the configured folders, without one."""
    if not url:
        return nullcontext()
    from app.client import Client

    return Client(url, token)


def reject_url_with_ray(url: str | None, ray: str | None) -> None:
    """Raise ArgumentError where both a service and a cluster are named."""
    if url and ray:
        raise ArgumentError("expected at most one of --url and --ray, got both")


def print_line(text: str) -> None:
    """Print a line beside a command's output."""
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, soft_wrap=True)
