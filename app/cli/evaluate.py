"""`segcal evaluate`: evaluate a local model or a running service, and write a page about it."""

import json
from pathlib import Path
from typing import Annotated

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
from app.errors import ArgumentError


def evaluate_command(
    images: Annotated[str, typer.Option(help="Images: a folder or a bucket's prefix.")],
    labels: Annotated[str, typer.Option(help="Label maps of the same stems, likewise.")],
    model: ModelOption = None,
    calibrator: CalibratorOption = "active",
    out: Annotated[Path, typer.Option(dir_okay=False, help="HTML page.")] = Path("report.html"),
    tta: TtaOption = "none",
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
    analyses: Annotated[
        bool,
        typer.Option("--analyses", help="Add the papers' analyses, and a JSON file."),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="With --analyses: another model to put beside it; may be repeated."),
    ] = None,
    invalid: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="With --analyses: masks of the same stems, nonzero where pixels are invalid.",
        ),
    ] = None,
    thetas: Annotated[
        str | None,
        typer.Option(help="With --analyses: thresholds of UIoU, as 0.1,0.5,0.9; default: ten."),
    ] = None,
    ray: RayOption = None,
    url: UrlOption = None,
    token: ApiTokenOption = None,
) -> None:
    """Evaluate a model or a running service on labelled images, and write a page about it."""
    from rich.console import Console

    from app.cli import evaluation
    from app.cli.image_files import open_folders
    from app.cli.remote_model import RemoteModel
    from app.datasets.images import find_pairs
    from app.datasets.uploads import image_groups
    from app.evaluation.analyses import Analyses, analyse, evaluations
    from app.evaluation.analysis_document import analysis_document
    from app.evaluation.evaluate import EvaluatedModel, Options, evaluate_model
    from app.evaluation.html_report import render
    from app.serving.segmenter import ACTIVE, NO_CALIBRATOR
    from app.settings import load_settings

    reject_url_with_ray(url, ray)
    settings = load_settings()
    if not out.resolve().parent.is_dir():  # raised before the evaluation, which may take an hour
        raise ArgumentError(f"--out: expected a file in a folder that exists, got {out}")
    pairs = find_pairs(*open_folders(images, labels))
    groups = None if group_index is None else image_groups(group_index, len(pairs))
    request = evaluation.AnalysisRequest(tuple(compare or ()), invalid, thetas)
    request.check(out, tta, analyses=analyses, ray=ray is not None)
    analysis_options = request.options(pairs)
    console = Console(stderr=True)
    with connect(url, token) as client:

        def open_model(name: str | None, version: str) -> EvaluatedModel:
            if client:
                return RemoteModel(client, name, version, tta)
            return evaluation.local_model(settings, name, version, tta)

        subject = open_model(model, calibrator)
        # A version belongs to one model, so the others have their active ones.
        version = NO_CALIBRATOR if calibrator == NO_CALIBRATOR else ACTIVE
        others = [open_model(name, version) for name in request.compare]
        card = subject.folder.card
        void = card.output.ignore_index if ignore_index is None else ignore_index
        options = Options(void, settings.max_pixels, tta, worst, groups)
        if subject.manifest is None and calibrator == ACTIVE:
            console.print(f"{card.name} has no active calibrator: measured without one")
        analysed: Analyses | None = None
        if ray:
            from app.cli.ray_runs import evaluate_on_ray

            done = evaluate_on_ray(ray, subject, settings, pairs, options)
        elif analyses:
            analysed = evaluation.with_progress(
                console,
                evaluations(len(others)) * len(pairs),
                lambda advance: analyse(subject, others, pairs, options, analysis_options, advance),
            )
            done = analysed.comparison
        else:
            done = evaluation.with_progress(
                console,
                len(pairs),
                lambda advance: evaluate_model(subject, pairs, options, advance),
            )
        page = render(
            done,
            {index: evaluation.image_thumbnails(subject, done, index) for index in done.worst()},
            analysed,
        )
    evaluation.write(out, page.encode(), console)
    if analysed is not None:
        document = json.dumps(analysis_document(analysed), indent=2, allow_nan=False)
        evaluation.write(out.with_suffix(evaluation.JSON), f"{document}\n".encode(), console)
    evaluation.print_metrics(done)
