"""Options that several commands of `segcal` have in common."""

from typing import Annotated

import typer

ModelOption = Annotated[str | None, typer.Option("--model", help="Default: the only model.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="A running service; default: this machine's folders.")
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="SEGCAL_ADMIN_TOKEN", help="The service's admin token."),
]
ApiTokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="SEGCAL_TOKEN", help="One of the service's API tokens."),
]
