"""`segcal segment`: segment image files locally or on a running service, into a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import (
    ApiTokenOption,
    CalibratorOption,
    ModelOption,
    RayOption,
    TtaOption,
    UrlOption,
    connect,
    reject_url_with_ray,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from app.cli.segment_files import Request
    from app.storage.object_files import ImageFile, ObjectFolder


def segment_command(
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, quoted globs, and URLs of a bucket.")
    ],
    out: Annotated[
        str,
        typer.Option(help="Folder or bucket's prefix for the results, to which they are added."),
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
    ray: RayOption = None,
    url: UrlOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Write masks, confidence maps and a table of per-image figures.

    The table, figures.csv, names the image behind each result. Later runs append to it.
    """
    from rich.console import Console

    from app.cli.flags import name_flags
    from app.cli.image_files import find_images, locate
    from app.cli.segment_files import Request
    from app.errors import ArgumentError

    if min_confidence is not None and max_error is not None:
        raise ArgumentError("expected at most one of --min-confidence and --max-error, got both")
    reject_url_with_ray(url, ray)
    request = Request(
        {
            "model": model, "calibrator": calibrator, "tta": tta,
            "min_confidence": min_confidence, "max_error": max_error,
        },
        overlay=overlay, heatmap=heatmap,
    )  # fmt: skip
    console = Console(stderr=True)
    target = locate(out)
    if isinstance(target, Path) and target.exists() and not target.is_dir():
        raise ArgumentError(f"--out: expected a folder, got the file {out}")
    found = find_images(images)
    if ray is not None:
        from app.cli.ray_runs import worker_settings
        from app.cli.segment_batch import segment_batch
        from app.settings import load_settings

        with worker_settings(ray, load_settings()) as settings:
            failed = segment_batch(found, target, settings, request)
    else:
        failed = _segment_here(found, target, request, console, url, token)
    for path, reason in failed.items():
        text = f"{path}: {name_flags(reason)}"
        console.print(text, style="red", markup=False, soft_wrap=True)
    done = len(found) - len(failed)
    console.print(f"{done} of {len(found)} images, results in {out}", markup=False)
    if failed:
        raise typer.Exit(1)


def _segment_here(
    images: "Sequence[ImageFile]",
    out: "Path | ObjectFolder",
    request: "Request",
    console: "Console",
    url: str | None,
    token: str | None,
) -> "dict[ImageFile, str]":
    """Segment images in this process or on a service; return the errors of single images."""
    from rich.progress import MofNCompleteColumn, Progress

    from app.cli.figures import open_table
    from app.cli.segment_files import FileSegmenter, segment_all

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
        table = open_table(out)
        progress.update(task, description="segmenting", total=len(images))
        return segment_all(images, table, segmenter, lambda: progress.advance(task))
