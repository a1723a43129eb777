"""`segcal serve`: serve all models over HTTP."""

import logging
from typing import Annotated

import typer


def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve all models over HTTP."""
    from app.settings import load_settings

    settings = load_settings()
    from app.main import run

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # It logs every request to a remote model's server, with the address.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    run(settings, host, port)
