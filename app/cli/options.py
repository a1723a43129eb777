"""Options shared by several commands of `segcal`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from app.client import Client

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Default: the configured model, else the default or only one."),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="A running service; default: the configured folders.")
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="SEGCAL_ADMIN_TOKEN", help="The service's admin token."),
]
ApiTokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="SEGCAL_TOKEN", help="One of the service's API tokens."),
]


def connect(url: str | None, token: str | None) -> AbstractContextManager[Client | None]:
    """Return a client of the service at `url`, or None, for the configured folders, without one."""
    return Client(url, token) if url else nullcontext()
