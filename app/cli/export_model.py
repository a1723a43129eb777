"""`segcal models export`: one ONNX file from an image to labels and calibrated confidence."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.conversion.export_model import export_model
from app.datasets.images import images_by_stem, read_image
from app.inference.predictor import open_predictor
from app.serving.model_folders import find_model
from app.serving.segmenter import ACTIVE, NO_CALIBRATOR, find_calibrator
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import replace_file, storage

MAX_IMAGES = 16  # of the folder, for the comparison

console = Console(stderr=True)


def export_command(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The ONNX file to write.")],
    calibrator: Annotated[str, typer.Option(help="A version's id, active or none.")] = ACTIVE,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Up to 16 images for the comparison."),
    ] = None,
) -> None:
    """Write one ONNX file that computes labels and confidence as the service does."""
    settings = load_settings()
    folder = find_model(settings, name)
    stored = find_calibrator(ArtifactStore(settings.artifacts_dir), folder, calibrator)
    predictor = open_predictor(folder, "cpu", settings.threads)
    files = [] if images is None else list(images_by_stem(images).values())[:MAX_IMAGES]
    scaling = folder.card.input.scaling
    compared = [read_image(path, settings.max_pixels, scaling) for path in files]
    with console.status("exporting"):
        exported = export_model(predictor, stored, compared)
    with storage("the exported model"):
        replace_file(out, exported.data)
    agreement = exported.agreement
    version = NO_CALIBRATOR if stored is None else stored.manifest.id
    console.print(
        f"{out}: {folder.card.name} with calibrator {version}, {len(exported.data)} bytes; on "
        f"{agreement.images} images {agreement.label_agreement:.4%} of the service's labels, and "
        f"confidence within {agreement.confidence_difference:.2g}",
        markup=False,
        soft_wrap=True,
    )
