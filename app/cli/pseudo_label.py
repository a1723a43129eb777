"""`segcal pseudo-label`: predicted label maps for training, void where uncertain."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import CalibratorOption, ModelOption

if TYPE_CHECKING:
    from rich.console import Console

    from app.datasets.pseudo_labels import PseudoLabels


def pseudo_label_command(
    images: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the label maps.")],
    max_error: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Error certified for the accepted pixels, in 0..1."),
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Threshold without a certificate, in 0..1.")
    ] = None,
    class_wise: Annotated[
        bool,
        typer.Option(
            "--class-wise", help="Lower a class's threshold to its pixels' median confidence."
        ),
    ] = False,
    boundary_width: Annotated[
        int, typer.Option(min=0, max=64, help="Pixels beside a label change to leave out.")
    ] = 0,
    model: ModelOption = None,
    calibrator: CalibratorOption = "active",
) -> None:
    """Write label maps for training whose uncertain pixels have the ignore value."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from app.datasets.images import images_by_stem
    from app.datasets.pseudo_labels import LocalPredictor, find_rule, write_pseudo_labels
    from app.errors import ArgumentError
    from app.inference.predictor import open_predictor
    from app.inference.threads import RowWorkers
    from app.serving.model_folders import find_model
    from app.serving.segmenter import find_calibrator
    from app.settings import load_settings
    from app.storage.artifacts import ArtifactStore

    console = Console(stderr=True)
    settings = load_settings()
    folder = find_model(settings, model)
    stored = find_calibrator(ArtifactStore(settings.artifacts_dir), folder, calibrator)
    rule = find_rule(
        stored, min_confidence=min_confidence, max_error=max_error,
        class_wise=class_wise, boundary_width=boundary_width,
    )  # fmt: skip
    files = list(images_by_stem(images).values())
    if not files:
        raise ArgumentError(f"expected a folder with images, got none in {images}")
    if out.resolve() == images.resolve():
        raise ArgumentError(f"--out: expected another folder than that of the images, got {out}")
    torch.set_num_threads(settings.threads)
    predict = LocalPredictor(
        open_predictor(folder, settings.device, settings.threads),
        stored,
        settings.max_pixels,
        RowWorkers(settings.threads),
    )
    with Progress(console=console) as progress:
        task = progress.add_task("pseudo-labels", total=len(files) * (1 + class_wise))
        output = folder.card.output
        result = write_pseudo_labels(
            files, out, predict, rule, output, lambda: progress.advance(task)
        )
    report(result, len(files), out, console)
    if result.failed:
        raise typer.Exit(1)


def report(result: "PseudoLabels", images: int, out: Path, console: "Console") -> None:
    """Print the acceptance by class, and the images without pseudo-labels with the reason."""
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "threshold", "predicted pixels", "accepted", title="acceptance by class")
    for each in result.classes:
        table.add_row(
            each.name, f"{each.threshold:.4f}", str(each.predicted), f"{each.fraction:.1%}"
        )
    Console().print(table)
    for path, reason in result.failed.items():
        console.print(f"{path}: {reason}", style="red", markup=False, soft_wrap=True)
    if result.excluded:
        console.print(
            f"{len(result.excluded)} images have no pseudo-labels: their in-distribution score is "
            "below 0.5, so that the certified error does not apply to them; --min-confidence sets "
            "a threshold without a certificate",
            style="yellow",
            soft_wrap=True,
        )
    written = images - len(result.excluded) - len(result.failed)
    console.print(f"{written} of {images} images, label maps in {out}", soft_wrap=True)
