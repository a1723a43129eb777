"""Parts of `segcal evaluate`: options of the analyses, local models, thumbnails and output."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.datasets.images import Pair, find_masks, read_image, read_labels_for
from app.errors import ArgumentError
from app.evaluation.analyses import AnalysisOptions
from app.evaluation.evaluate import Comparison, EvaluatedModel, LocalModel
from app.evaluation.fit_images import FitImages
from app.evaluation.formatting import (
    findings,
    headline,
    interval_text,
    metric_rows,
    number,
    shared_images,
    signed,
    too_few_units,
)
from app.evaluation.thumbnails import Thumbnails, draw_thumbnails
from app.inference.predictor import Tta, open_predictor
from app.serving.model_folders import find_model
from app.serving.segmenter import find_calibrator
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import replace_file, storage

T = TypeVar("T")

JSON = ".json"  # of the file of the analyses, beside the page


@dataclass(frozen=True)
class AnalysisRequest:
    """Options of the command that need `--analyses`."""

    compare: tuple[str, ...]
    invalid: Path | None
    thetas: str | None

    def check(self, out: Path, tta: Tta, *, analyses: bool, ray: bool) -> None:
        """Raise ArgumentError for options that do not go together."""
        given = [f"--{field.name}" for field in fields(self) if getattr(self, field.name)]
        if given and not analyses:
            raise ArgumentError(f"expected --analyses with {given[0]}, got {given[0]} alone")
        if analyses and ray:
            raise ArgumentError("expected at most one of --analyses and --ray, got both")
        if analyses and tta != "none":
            raise ArgumentError(
                f"--tta: expected none with --analyses, which compare the scales, got {tta}"
            )
        if analyses and out.suffix == JSON:
            raise ArgumentError(
                f"--out: expected a page, beside which the analyses write {out.name}, got {out}"
            )

    def options(self, pairs: Sequence[Pair]) -> AnalysisOptions:
        """Read the thresholds and find the masks; raises ArgumentError."""
        masks = None if self.invalid is None else find_masks(self.invalid, pairs)
        return AnalysisOptions(None if self.thetas is None else read_thetas(self.thetas), masks)


def read_thetas(text: str) -> list[float]:
    """Read thresholds in 0..1, separated by commas; raises ArgumentError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise ArgumentError(
            f"--thetas: expected numbers in 0..1, separated by commas, got {text[:80]!r}"
        )
    return values


def write(path: Path, data: bytes, console: Console) -> None:
    """Write a file of the report, and name it."""
    with storage("the report"):
        replace_file(path, data)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def with_progress(console: Console, total: int, work: Callable[[Callable[[], object]], T]) -> T:
    """Call `work` with a function that it calls after each of `total` images; show a bar."""
    with Progress(console=console) as progress:
        task = progress.add_task("evaluating", total=total)
        return work(lambda: progress.advance(task))


def local_model(settings: Settings, model: str | None, calibrator: str, tta: Tta) -> LocalModel:
    """Load a model of the configured folders, with one of its calibrators or none."""
    folder = find_model(settings, model)
    store = ArtifactStore(settings.artifacts_dir)
    stored = find_calibrator(store, folder, calibrator)
    predictor = open_predictor(folder, settings.device, settings.threads)
    fit_images = (
        None
        if stored is None
        else FitImages.recorded(store.report(folder.card.name, stored.manifest.id))
    )
    return LocalModel(predictor, stored, settings.max_pixels, tta, fit_images)


def image_thumbnails(model: EvaluatedModel, done: Comparison, index: int) -> Thumbnails:
    """Segment one image of the set again and draw its thumbnails."""
    pair, options, folder = done.pairs[index], done.options, done.folder
    predictions = model.predict(pair)
    served = (predictions.calibrated or predictions.plain).prediction
    size = served.mask.shape[0], served.mask.shape[1]
    image = read_image(pair.image, options.max_pixels, folder.card.input.scaling)
    labels = read_labels_for(
        pair,
        size,
        folder.num_classes,
        options.ignore_index,
        options.max_pixels,
        reduce_zero=folder.card.output.reduce_zero_label,
    )
    return draw_thumbnails(image, served.mask, served.confidence, labels, folder.palette)


def print_metrics(done: Comparison) -> None:
    """Print the findings and the table of metrics."""
    console = Console()
    console.print(headline(done.before, done.after), style="bold", markup=False)
    for sentence in findings(done.before, done.after, done.difference, done.units):
        console.print(sentence, markup=False)
    if done.manifest is not None:
        found = done.shared is not None and done.shared.total > 0
        sentence = shared_images(done.shared, len(done.pairs))
        text = f"warning: {sentence}" if found else sentence
        console.print(text, style="yellow" if found else None, markup=False, soft_wrap=True)
    columns = ("metric", "uncalibrated") + (("calibrated", "change") if done.after else ())
    table = Table(*columns)
    for row in metric_rows(done.before, done.after):
        cells = [row.name, number(row.before)]
        if done.after:
            cells += [number(row.after), f"{signed(row.change)} {row.direction}"]
        table.add_row(*cells)
    console.print(table)
    ece = done.ece_interval(done.served)
    if math.isnan(ece.low):
        console.print(f"image-wise ECE: {too_few_units(done.units)}")
        return
    by = f"by {done.units.singular}"
    console.print(f"image-wise ECE, 95% interval {by}: {number(ece.low)} to {number(ece.high)}")
    if done.difference is not None:
        change = interval_text(done.difference)
        console.print(f"image-wise ECE, 95% interval of the change {by}: {change}")
