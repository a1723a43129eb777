"""`segcal calibrate`: fit a calibrator locally or on a running service."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import (
    ModelOption,
    RayOption,
    TokenOption,
    UrlOption,
    connect,
    reject_url_with_ray,
)
from app.errors import ArgumentError
from app.schemas.fit import Activate, Routing

if TYPE_CHECKING:
    from app.cli.fits import Source


def calibrate_command(
    logits: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help=".npz, .npy or .safetensors."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Images to run the model on: a folder or a bucket's prefix.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label maps, likewise, or the file of the logits' labels.")
    ] = None,
    image_index: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Image of each table row.")
    ] = None,
    group_index: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Group of each image, never split."),
    ] = None,
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="auto, or one method's name.")] = "auto",
    activate: Annotated[
        Activate, typer.Option(help="When to make the new version the active one.")
    ] = "if_better",
    allow_label_changes: Annotated[
        bool, typer.Option("--allow-label-changes", help="Try methods that may change labels too.")
    ] = False,
    ignore_index: Annotated[
        int | None, typer.Option(help="Label of void pixels; default: the card's, else 255.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of random methods.")] = 0,
    note: Annotated[str, typer.Option(help="For the record of the version.")] = "",
    routing: Annotated[
        Routing | None, typer.Option(help="Of selective: mix its two temperatures or choose one.")
    ] = None,
    mispredicted_temperature: Annotated[
        float | None, typer.Option(help="Of selective: fix it, and the other one at 1.")
    ] = None,
    rejected_temperature: Annotated[
        float | None, typer.Option(help="Of metacal; default: rejected pixels are uniform.")
    ] = None,
    certify: Annotated[
        bool, typer.Option(help="Certify thresholds for --max-error on the test images or groups.")
    ] = True,
    shard: Annotated[
        str | None,
        typer.Option(help="Compute only this part of the images, as 3/8; see `segcal merge`."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="With --shard or --ray: folder of shards."),
    ] = None,
    ray: RayOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Fit a calibrator on labelled data, publish it, and activate it if it is better."""
    from rich.console import Console
    from rich.progress import Progress

    from app.schemas.fit import FitOptions

    source = read_source(
        {"logits": logits, "image_index": image_index, "group_index": group_index},
        images, labels, ignore_index,
    )  # fmt: skip
    reject_url_with_ray(url, ray)
    if out is None and (shard or ray):
        raise ArgumentError("expected --out, the folder of the shards, with --shard and --ray")
    if out is not None and re.match("[a-z0-9]+:/", str(out)):
        raise ArgumentError(
            f"--out: expected a folder, from which the fit reads the shards, got a URL: {out}"
        )
    if (shard and (ray or url)) or (out is not None and not (shard or ray)):
        raise ArgumentError(
            "expected --shard without --ray and --url, and --out with one of the first two"
        )
    options = FitOptions.parse(
        {
            "method": method, "activate": activate, "allow_label_changes": allow_label_changes,
            "seed": seed, "note": note, "certify": certify, "routing": routing,
            "mispredicted_temperature": mispredicted_temperature,
            "rejected_temperature": rejected_temperature,
        }
    )  # fmt: skip
    uploads = source.uploads() if url else {}
    console = Console(stderr=True)
    with connect(url, token) as client, Progress(console=console) as progress:
        task = progress.add_task("starting", total=1.0)

        def on_progress(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)

        if client is not None:
            name = client.model(model).name  # raises before files are sent
            queued = client.calibrate(
                uploads, options, model=name, ignore_index=ignore_index, on_progress=on_progress
            )
            done = client.wait(queued.id, on_progress)
            calibrator, report = done.calibrator, done.report
        else:
            from app.cli.fits import fit_locally
            from app.serving.model_folders import find_model
            from app.settings import load_settings

            settings = load_settings()
            folder = find_model(settings, model)
            if shard is not None and out is not None:
                from app.cli.shards import compute_shard
                from app.datasets.shards import ShardNumber

                part = ShardNumber.parse(shard)
                done_folder = compute_shard(
                    part, source, options, folder, settings, out, on_progress
                )
                console.print(f"wrote {done_folder}", markup=False, soft_wrap=True)
                return
            if ray is not None and out is not None:
                from app.cli.ray_runs import calibrate_on_ray

                fitted = calibrate_on_ray(ray, source, options, folder, settings, out, on_progress)
            else:
                fitted = fit_locally(source, options, folder, settings, on_progress)
            calibrator, report = fitted.manifest.id, fitted.report
    print_fit(calibrator or "", report or {})


def read_source(
    files: Mapping[str, Path | None],
    images: str | None,
    labels: str | None,
    ignore_index: int | None,
) -> "Source":
    """Return the data that the options name, either logits or images with label maps.

    Raises ArgumentError for others, and for folders and files that do not exist.
    """
    from app.cli.fits import Source
    from app.cli.image_files import open_folders

    paths = {name: path for name, path in files.items() if path is not None}
    if images and labels and set(paths) <= {"group_index"} and not Path(labels).is_file():
        return Source(paths, ignore_index, open_folders(images, labels))
    if "logits" in paths and images is None and (labels is None or Path(labels).is_file()):
        return Source(paths | ({"labels": Path(labels)} if labels else {}), ignore_index)
    given = {**paths, "images": images, "labels": labels}
    names = [f"--{name}" for name, value in given.items() if value is not None]
    raise ArgumentError(
        "expected --logits, with the file --labels unless inside, or the folders --images and "
        f"--labels, got {' '.join(names) or 'neither'}"
    )


def print_fit(calibrator: str, report: dict[str, Any]) -> None:
    """Print the metrics of a report's candidates, and the decision on the new version."""
    from rich.console import Console
    from rich.table import Table

    rows = report["candidates"]
    columns = ("method", "ece_image", "ece_pooled", "nll", "aurc", "miou")
    table = Table(*columns, title="on the test images", title_justify="left", box=None)
    for row in [report["uncalibrated"], *rows]:
        values = [row[column] for column in columns]
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)
    decision = report["decision"]
    state = "active" if decision["activated"] else "not activated"
    text = f"{calibrator} is {state}: {decision['why']}"
    Console(stderr=True).print(text, markup=False)
