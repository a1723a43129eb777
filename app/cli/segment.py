"""`segcal segment`: segment image files locally or on a running service, into a folder."""

import base64
import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from app.cli.options import ApiTokenOption, ModelOption, UrlOption, connect
from app.client import Client
from app.errors import ArgumentError, SegcalError
from app.imaging import encode
from app.inference.predictor import open_predictor
from app.inference.threads import RowWorkers
from app.serving.model_folders import find_model
from app.serving.pipeline import StageTimer
from app.serving.segmenter import (
    NO_CALIBRATOR,
    Segmenter,
    SegmentOptions,
    abstained_fraction,
)
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore

console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One image's row of `figures.csv`; sizes in pixels, the last two values in 0..1."""

    image: str
    model: str
    calibrator: str
    width: int
    height: int
    mean_confidence: float
    abstained_fraction: float


class Segmented(NamedTuple):
    """One image's mask and confidence as PNG, and its row of `figures.csv`."""

    mask: bytes
    confidence: bytes
    row: Row


SegmentFile = Callable[[Path], Segmented]  # raises SegcalError


class LocalSegmenter:
    """Segments files in this process, with a model of the configured folders."""

    def __init__(self, settings: Settings, model: str | None) -> None:
        torch.set_num_threads(settings.threads)
        folder = find_model(settings, model)
        name, store = folder.card.name, ArtifactStore(settings.artifacts_dir)
        predictor = open_predictor(folder, settings.device, settings.threads)
        self._segmenter = Segmenter(
            {name: predictor}, name, store, settings.max_pixels, RowWorkers(settings.threads)
        )

    def __call__(self, path: Path) -> Segmented:
        """Segment one file."""
        done = self._segmenter.segment(path.read_bytes(), SegmentOptions(), StageTimer())
        row = Row(
            image=str(path),
            model=done.predictor.folder.card.name,
            calibrator=done.calibrator.manifest.id if done.calibrator else NO_CALIBRATOR,
            width=done.prediction.mask.shape[1],
            height=done.prediction.mask.shape[0],
            mean_confidence=done.mean_confidence,
            abstained_fraction=abstained_fraction(done),
        )
        palette = done.predictor.folder.palette
        return Segmented(
            encode.mask_png(done.prediction.mask, palette),
            encode.confidence_png(done.prediction.confidence),
            row,
        )


def segment_remotely(client: Client, model: str | None, path: Path) -> Segmented:
    """Segment one file on a running service."""
    body = client.segment(path.read_bytes(), {"model": model} if model else {})
    row = Row(
        image=str(path),
        model=body["model"],
        calibrator=body["calibration"]["calibrator"],
        width=body["width"],
        height=body["height"],
        mean_confidence=body["mean_confidence"],
        abstained_fraction=body["abstained_fraction"],
    )
    mask, confidence = body["mask"]["data"], body["confidence"]["data"]
    return Segmented(base64.b64decode(mask), base64.b64decode(confidence), row)


def segment_all(
    images: Sequence[Path], out: Path, segment: SegmentFile, advance: Callable[[], object]
) -> dict[Path, str]:
    """Write `<stem>.mask.png`, `<stem>.confidence.png` and `figures.csv`; return the errors.

    An image that fails does not stop the others. Raises ArgumentError if two images have the same
    stem.
    """
    stems: dict[str, Path] = {}
    for path in images:
        if stems.setdefault(path.stem, path) != path:
            raise ArgumentError(
                f"expected images of different names, got {stems[path.stem]} and {path}"
            )
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[Path, str] = {}
    with (out / "figures.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(Row.__dataclass_fields__))
        table.writeheader()
        for path in images:
            try:
                segmented = segment(path)
            except SegcalError as error:
                failed[path] = str(error)
            else:
                (out / f"{path.stem}.mask.png").write_bytes(segmented.mask)
                (out / f"{path.stem}.confidence.png").write_bytes(segmented.confidence)
                table.writerow(asdict(segmented.row))
            advance()
    return failed


def segment_command(
    images: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results.")],
    url: UrlOption = None,
    model: ModelOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Write masks, confidence maps and a CSV of per-image statistics."""
    settings = load_settings()
    with connect(url, token) as client, Progress(console=console) as progress:
        segment: SegmentFile = (
            partial(segment_remotely, client, model) if client else LocalSegmenter(settings, model)
        )
        task = progress.add_task("segmenting", total=len(images))
        failed = segment_all(images, out, segment, lambda: progress.advance(task))
    for path, reason in failed.items():
        console.print(f"{path}: {reason}", style="red", markup=False, soft_wrap=True)
    console.print(f"{len(images) - len(failed)} of {len(images)} images, results in {out}")
    if failed:
        raise typer.Exit(1)
