"""`segcal serve`: serve all models over HTTP."""

import sys
from typing import Annotated

import typer


def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Number of server processes, which share the port.")
    ] = 1,
) -> None:
    """Serve all models over HTTP."""
    from app.settings import load_settings

    settings = load_settings()
    if processes > 1:
        from app.cli.processes import serve_in_processes

        sys.exit(serve_in_processes(settings, host, port, processes))
    from app.main import run

    run(settings, host, port)
