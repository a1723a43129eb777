"""`segcal evaluate`: evaluate a local model or a running service, and write a page about it."""

import io
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from app.calibration.predictions import Prediction
from app.cli.options import ApiTokenOption, ModelOption, UrlOption, connect
from app.client import Client
from app.datasets.images import Pair, find_pairs, read_image, read_labels_for
from app.datasets.uploads import image_groups
from app.errors import ArgumentError
from app.evaluation.evaluate import (
    Comparison,
    EvaluatedModel,
    LocalModel,
    Options,
    ScoredPrediction,
    evaluate_model,
)
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
from app.evaluation.html_report import render
from app.evaluation.thumbnails import Thumbnails, draw_thumbnails
from app.inference.model_card import Card, ModelFolder
from app.inference.predictor import Tta, open_predictor
from app.main import find_model
from app.serving.segmenter import ACTIVE, NO_CALIBRATOR, find_calibrator
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import replace_file, storage
from app.storage.manifest import Manifest

CARD_FIELDS = ("name", "title", "license", "source", "metrics")  # that GET /models returns


class RemoteModel:
    """A model of a running service, with one of its calibrators or none."""

    def __init__(
        self, client: Client, model: str | None, calibrator: str = ACTIVE, tta: Tta = "none"
    ) -> None:
        self._client, self._tta = client, tta
        served = client.model(model)
        output = {
            "ignore_index": served["ignore_index"],
            "classes": [{"name": c["name"], "color": c["color"]} for c in served["classes"]],
        }
        fields = {name: value for name, value in served.items() if name in CARD_FIELDS}
        card = Card.model_validate({**fields, "file": "served.onnx", "output": output})
        self.folder = ModelFolder(card, Path(), served["sha256"])
        version = served["active_calibrator"] if calibrator == ACTIVE else calibrator
        self.manifest: Manifest | None = None
        self.fit_images: FitImages | None = None
        if version is not None and version != NO_CALIBRATOR:
            self.manifest = Manifest.model_validate(client.calibrator(version))
            self.fit_images = FitImages.recorded(client.calibrator_report(version))

    def predict(self, pair: Pair) -> tuple[ScoredPrediction, ScoredPrediction | None]:
        """Request the prediction of an image without the calibrator, and with it."""
        image = pair.image.read_bytes()
        plain = self._request(image, NO_CALIBRATOR)
        return plain, None if self.manifest is None else self._request(image, self.manifest.id)

    def _request(self, image: bytes, calibrator: str) -> ScoredPrediction:
        query = {"model": self.folder.card.name, "calibrator": calibrator, "tta": self._tta}
        arrays = np.load(io.BytesIO(self._client.segment_npz(image, query)), allow_pickle=False)
        prediction = Prediction(arrays["mask"], arrays["confidence"].astype(np.float32))
        return ScoredPrediction(prediction, unknown_scores)


def unknown_scores(_labels: Tensor) -> tuple[float, float]:
    """Return NaN for NLL and Brier: they need every class's probability, not only the label's."""
    return math.nan, math.nan


def evaluate_command(
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Images.")],
    labels: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Label maps of the same stems.")
    ],
    model: ModelOption = None,
    calibrator: Annotated[str, typer.Option(help="A version's id, active, or none.")] = ACTIVE,
    out: Annotated[Path, typer.Option(dir_okay=False, help="HTML page.")] = Path("report.html"),
    tta: Annotated[Tta, typer.Option(help="Test-time augmentation.")] = "none",
    ignore_index: Annotated[
        int | None, typer.Option(help="Label of void pixels; default: the card's.")
    ] = None,
    group_index: Annotated[
        Path | None,
        typer.Option(
            "--group-index",
            "--groups",
            exists=True,
            dir_okay=False,
            help="Group of each image, as .npy; intervals resample groups.",
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, max=50, help="Images to show for each reason.")] = 4,
    url: UrlOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Evaluate a model or a running service on labelled images, and write a page about it."""
    settings = load_settings()
    if not out.resolve().parent.is_dir():  # raised before the evaluation, which may take an hour
        raise ArgumentError(f"--out: expected a file in a folder that exists, got {out}")
    pairs = find_pairs(images, labels)
    groups = None if group_index is None else image_groups(group_index, len(pairs))
    console = Console(stderr=True)
    with connect(url, token) as client:
        subject: EvaluatedModel = (
            RemoteModel(client, model, calibrator, tta)
            if client
            else local_model(settings, model, calibrator, tta)
        )
        card = subject.folder.card
        void = card.output.ignore_index if ignore_index is None else ignore_index
        options = Options(void, settings.max_pixels, tta, worst, groups)
        if subject.manifest is None and calibrator == ACTIVE:
            console.print(f"{card.name} has no active calibrator: measured without one")
        with Progress(console=console) as progress:
            task = progress.add_task("evaluating", total=len(pairs))
            done = evaluate_model(subject, pairs, options, lambda: progress.advance(task))
        page = render(
            done, {index: image_thumbnails(subject, done, index) for index in done.worst()}
        )
    with storage("the page"):
        replace_file(out, page.encode())
    print_metrics(done)
    console.print(f"wrote {out}", markup=False, soft_wrap=True)


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
    uncalibrated, calibrated = model.predict(pair)
    served = (calibrated or uncalibrated).prediction
    size = served.mask.shape[0], served.mask.shape[1]
    image = read_image(pair.image, options.max_pixels)
    labels = read_labels_for(
        pair, size, folder.num_classes, options.ignore_index, options.max_pixels
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
