"""`segcal serve`: serve all models over HTTP."""

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

    run(settings, host, port)
