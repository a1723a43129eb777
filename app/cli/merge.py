"""`segcal merge`: run the fit whose shards `segcal calibrate --shard` has computed."""

from pathlib import Path
from typing import Annotated

import typer


def merge_command(
    shards: Annotated[
        list[Path], typer.Argument(exists=True, file_okay=False, help="Shards, or their folder.")
    ],
) -> None:
    """Fit on all shards of a set, as one `segcal calibrate` of the whole set does."""
    from rich.console import Console
    from rich.progress import Progress

    from app.cli.calibrate import print_fit
    from app.cli.shards import fit_shards
    from app.datasets.shards import find_shards
    from app.settings import load_settings

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=1.0)
        fitted = fit_shards(
            find_shards(shards),
            load_settings(),
            lambda stage, fraction: progress.update(task, description=stage, completed=fraction),
        )
    print_fit(fitted.manifest.id, fitted.report)
