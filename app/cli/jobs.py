"""`segcal jobs`: list, cancel and retry calibration jobs, local or of a running service."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import TokenOption, UrlOption, connect, print_line

if TYPE_CHECKING:
    from app.schemas.fit import JobStatus

JobArgument = Annotated[str, typer.Argument(help="A job's id.")]


def list_command(url: UrlOption = None, token: TokenOption = None) -> None:
    """List the calibration jobs, newest first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    with connect(url, token) as client:
        if client is not None:
            listed: Sequence[JobStatus] = client.jobs()
        else:
            from app.cli.local_jobs import list_locally

            listed = list_locally()
    longest = max((len(job.id) for job in listed), default=0)
    table = Table(
        Column("job", no_wrap=True, min_width=longest), "model", "method", "state", "progress",
        "result", box=None,
    )  # fmt: skip
    for job in listed:
        result = job.error or job.calibrator or job.stage
        table.add_row(
            job.id, job.model, job.method, job.state, f"{job.progress:.0%}", escape(result)
        )
    Console().print(table)


def cancel_command(job: JobArgument, url: UrlOption = None, token: TokenOption = None) -> None:
    """Cancel a job; of a failed or interrupted one the upload is deleted."""
    with connect(url, token) as client:
        if client is not None:
            found: JobStatus = client.cancel(job)
        else:
            from app.cli.local_jobs import cancel_locally

            found = cancel_locally(job)
    stopping = "" if found.state == "cancelled" else ", and stops"
    print_line(f"{job} is {found.state}{stopping}")


def retry_command(job: JobArgument, url: UrlOption = None, token: TokenOption = None) -> None:
    """Fit a failed or interrupted job again, with its stored upload.

    Without --url the fit runs here.
    """
    from rich.console import Console
    from rich.progress import Progress

    from app.cli.calibrate import print_fit

    with Progress(console=Console(stderr=True)) as progress, connect(url, token) as client:
        task = progress.add_task("starting", total=1.0)

        def on_progress(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)

        if client is not None:
            done = client.wait(client.retry(job).id, on_progress)
            calibrator, fitted = done.calibrator, done.report
        else:
            from app.cli.local_jobs import retry_locally

            calibrator, fitted = retry_locally(job, on_progress)
    print_fit(calibrator or "", fitted or {})
