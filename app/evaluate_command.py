"""`segcal evaluate`: the arguments, the progress, the table and the page."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.artifacts import ArtifactStore
from app.connection import Connection
from app.disk import replace_file, storage
from app.errors import ArgumentError
from app.evaluation import Comparison, Here, Options, Subject, evaluate
from app.inference.predictor import Tta, open_predictor
from app.labelled import find_pairs, read_labels_for, read_picture
from app.main import find_model
from app.options import ApiTokenOption, ModelOption, UrlOption
from app.remote_evaluation import There
from app.reporting.figures import figures, number, signed
from app.reporting.page import render
from app.reporting.pictures import Views, views
from app.reporting.sentences import findings, headline
from app.service import ACTIVE, find_calibrator
from app.settings import Settings, load_settings


def evaluate_command(
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Pictures.")],
    labels: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Label maps of the same stems.")
    ],
    model: ModelOption = None,
    calibrator: Annotated[str, typer.Option(help="A version's id, active, or none.")] = ACTIVE,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The page.")] = Path("report.html"),
    tta: Annotated[Tta, typer.Option(help="Views of each picture that are averaged.")] = "none",
    ignore_index: Annotated[
        int | None, typer.Option(help="Label of void pixels; default: the card's.")
    ] = None,
    worst: Annotated[
        int, typer.Option(min=0, max=50, help="Pictures to show for each reason.")
    ] = 4,
    url: UrlOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Measure a model as it is served over labelled pictures, and write a page about it."""
    settings = load_settings()
    if not out.resolve().parent.is_dir():  # an hour of work must not end in this
        raise ArgumentError(f"--out: expected a file in a folder that exists, got {out}")
    pairs = find_pairs(images, labels)
    subject: Subject
    if url:
        subject = There(Connection(url, token), model, calibrator, tta)
    else:
        subject = subject_here(settings, model, calibrator, tta)
    card = subject.folder.card
    void = card.output.ignore_index if ignore_index is None else ignore_index
    options = Options(void, settings.max_pixels, tta, worst)
    console = Console(stderr=True)
    if subject.manifest is None and calibrator == ACTIVE:
        console.print(f"{card.name} has no active calibrator: measured without one")
    with Progress(console=console) as progress:
        task = progress.add_task("evaluating", total=len(pairs))
        done = evaluate(subject, pairs, options, lambda: progress.advance(task))
    page = render(done, {index: picture_views(subject, done, index) for index in done.worst()})
    with storage("the page"):
        replace_file(out, page.encode())
    print_figures(done)
    console.print(f"wrote {out}", markup=False, soft_wrap=True)


def subject_here(settings: Settings, model: str | None, calibrator: str, tta: Tta) -> Here:
    """Open a model of this machine's folders, with one of its calibrators or none."""
    folder = find_model(settings, model)
    stored = find_calibrator(ArtifactStore(settings.artifacts_dir), folder, calibrator)
    predictor = open_predictor(folder, settings.device, settings.threads)
    return Here(predictor, stored, settings.max_pixels, tta)


def picture_views(subject: Subject, done: Comparison, index: int) -> Views:
    """Have one of the set's pictures segmented again and draw it."""
    pair, options, folder = done.pairs[index], done.options, done.folder
    plain, ours = subject.answers(pair)
    served = ours or plain
    size = served.mask.shape[0], served.mask.shape[1]
    picture = read_picture(pair.image, options.max_pixels)
    labels = read_labels_for(
        pair, size, folder.num_classes, options.ignore_index, options.max_pixels
    )
    return views(picture, served.mask, served.confidence, labels, folder.palette)


def print_figures(done: Comparison) -> None:
    """Show what was found, and the figures behind it."""
    console = Console()
    console.print(headline(done.before, done.after), style="bold", markup=False)
    for sentence in findings(done.before, done.after, done.difference):
        console.print(sentence, markup=False)
    columns = ("figure", "uncalibrated") + (("calibrated", "change") if done.after else ())
    table = Table(*columns)
    for figure in figures(done.before, done.after):
        cells = [figure.name, number(figure.before)]
        if done.after:
            cells += [number(figure.after), f"{signed(figure.change)} {figure.verdict}"]
        table.add_row(*cells)
    console.print(table)
    if done.difference is not None and not math.isnan(done.difference.low):
        low, high = signed(done.difference.low), signed(done.difference.high)
        console.print(f"image-wise ECE, 95% interval of the change: {low} to {high}")
