"""`segcal segment`: segment image files locally or on a running service, into a folder."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import (
    ApiTokenOption,
    CalibratorOption,
    ModelOption,
    TtaOption,
    UrlOption,
    connect,
)


def segment_command(
    images: Annotated[list[str], typer.Argument(help="Files, folders and quoted globs.")],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for the results, to which they are added.")
    ],
    model: ModelOption = None,
    calibrator: CalibratorOption = "active",
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this confidence.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Abstain so that this error rate is kept, if certified."),
    ] = None,
    tta: TtaOption = "none",
    overlay: Annotated[bool, typer.Option("--overlay", help="Write overlays as well.")] = False,
    heatmap: Annotated[bool, typer.Option("--heatmap", help="Write heatmaps as well.")] = False,
    url: UrlOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Write masks, confidence maps and a table of per-image figures.

    The table, figures.csv, names the image behind each result. Later runs append to it.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from app.cli.figures import FigureTable
    from app.cli.flags import name_flags
    from app.cli.image_files import find_images
    from app.cli.segment_files import FileSegmenter, Request, segment_all
    from app.errors import ArgumentError

    if min_confidence is not None and max_error is not None:
        raise ArgumentError("expected at most one of --min-confidence and --max-error, got both")
    request = Request(
        {
            "model": model, "calibrator": calibrator, "tta": tta,
            "min_confidence": min_confidence, "max_error": max_error,
        },
        overlay=overlay, heatmap=heatmap,
    )  # fmt: skip
    console = Console(stderr=True)
    found = find_images(images)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with connect(url, token) as client, Progress(*columns, console=console) as progress:
        task = progress.add_task("loading", total=None)
        segmenter: FileSegmenter
        if client is None:
            from app.cli.local_segmenter import LocalSegmenter
            from app.settings import load_settings

            segmenter = LocalSegmenter(load_settings(), request)
        else:
            from app.cli.remote_segmenter import RemoteSegmenter

            segmenter = RemoteSegmenter(client, request)
        table = FigureTable(out)
        progress.update(task, description="segmenting", total=len(found))
        failed = segment_all(found, table, segmenter, lambda: progress.advance(task))
    for path, reason in failed.items():
        text = f"{path}: {name_flags(reason)}"
        console.print(text, style="red", markup=False, soft_wrap=True)
    done = len(found) - len(failed)
    console.print(f"{done} of {len(found)} images, results in {out}", markup=False)
    if failed:
        raise typer.Exit(1)
