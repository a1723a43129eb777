"""`segcal calibrate`: fit a calibrator locally or on a running service."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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


def calibrate_command(
    logits: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help=".npz, .npy or .safetensors."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Images to run the model on.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(exists=True, help="Label maps, or the logits' labels.")
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

    given = {
        "logits": logits, "images": images, "labels": labels, "image_index": image_index,
        "group_index": group_index,
    }  # fmt: skip
    paths = {name: path for name, path in given.items() if path is not None}
    check_sources(paths)
    reject_url_with_ray(url, ray)
    if out is None and (shard or ray):
        raise ArgumentError("expected --out, the folder of the shards, with --shard and --ray")
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
    console = Console(stderr=True)
    with connect(url, token) as client, Progress(console=console) as progress:
        task = progress.add_task("starting", total=1.0)

        def on_progress(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)

        if client is not None:
            name = client.model(model).name  # raises before files are sent
            queued = client.calibrate(
                paths, options, model=name, ignore_index=ignore_index, on_progress=on_progress
            )
            done = client.wait(queued.id, on_progress)
            calibrator, report = done.calibrator, done.report
        else:
            from app.cli.fits import Source, fit_locally
            from app.serving.model_folders import find_model
            from app.settings import load_settings

            settings = load_settings()
            folder = find_model(settings, model)
            source = Source(paths, ignore_index)
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


def check_sources(paths: Mapping[str, Path]) -> None:
    """Raise ArgumentError unless there are either logits, or images and label maps."""
    with_images = set(paths) - {"group_index"} == {"images", "labels"} and paths["labels"].is_dir()
    labels_are_files = "labels" not in paths or paths["labels"].is_file()
    with_logits = "logits" in paths and "images" not in paths and labels_are_files
    if not (with_images or with_logits):
        raise ArgumentError(
            "expected --logits, with --labels unless inside, or the folders --images and "
            f"--labels, got {' '.join(f'--{field}' for field in paths) or 'neither'}"
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
