"""`segcal models`: list, import and quantise models."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.conversion.classes import classes_with_colors
from app.conversion.framework_import import import_framework
from app.conversion.import_model import (
    ImportedModel,
    Reference,
    fill_size,
    import_model,
    new_model,
    read_card,
    write_card,
)
from app.conversion.plain_networks import Options
from app.conversion.quantization_report import QuantizationReport, measure
from app.conversion.quantize import Ranges, quantize_model
from app.conversion.sources import FRAMEWORKS, open_source
from app.datasets.images import Pair, find_pairs, images_by_stem
from app.errors import ArgumentError, SegcalError
from app.inference.model_card import (
    CARD,
    Activation,
    ModelFolder,
    Resample,
    read_model_folder,
)
from app.inference.predictor import Predictor, open_predictor
from app.serving.model_folders import find_model, model_folders
from app.settings import load_settings
from app.storage.files import storage, write_json

REPORT_FILE = "quantization.json"
TIMED_RUNS = 41

console = Console(stderr=True)


def list_command() -> None:
    """List the models, with the reason for each that cannot be loaded."""
    table = Table("model", "classes", "file", "sha256", "title")
    for path in model_folders(load_settings().models_dir):
        try:
            folder = read_model_folder(path)
        except SegcalError as error:
            table.add_row(path.name, "", "", "", f"refused: {error}")
            continue
        card = folder.card
        where = card.file or card.url
        table.add_row(card.name, str(folder.num_classes), where, folder.sha256[:12], card.title)
    Console().print(table)


def import_command(
    origin: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file (.onnx, .pt2, .pt), or hf:, torchvision:, smp:, dino: or mmseg: with "
            "a name or path.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the new model.")],
    weights: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CHECKPOINT]", exists=True, dir_okay=False, help="Weights of the framework."
        ),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A card, in TOML.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Names by channel, with commas.")] = None,
    taxonomy: Annotated[str | None, typer.Option(help="Name of a common list of classes.")] = None,
    title: str = "",
    license_: Annotated[str, typer.Option("--license")] = "",
    source: Annotated[str, typer.Option(help="Origin of weights and data.")] = "",
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="RGB, 0..1; default: 0 0 0.")
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None, typer.Option(help="RGB, 0..1; default: 1 1 1.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="H W; default: the file's only size, or native.")
    ] = None,
    fit: Annotated[
        Literal["stretch", "letterbox"] | None, typer.Option(help="To --size; default: stretch.")
    ] = None,
    resample: Annotated[
        Resample | None, typer.Option(help="Filter of resizing; default: bilinear.")
    ] = None,
    channels: Annotated[
        Literal["rgb", "bgr"] | None, typer.Option(help="Of the network; default: rgb.")
    ] = None,
    multiple_of: Annotated[
        int | None, typer.Option(min=1, help="Of padded sides; default: 32.")
    ] = None,
    mode: Annotated[
        Literal["whole", "slide"] | None, typer.Option(help="Or windows; default: whole.")
    ] = None,
    crop: Annotated[
        tuple[int, int] | None, typer.Option(help="H W of windows; default: the file's only size.")
    ] = None,
    stride: Annotated[
        tuple[int, int] | None, typer.Option(help="Of windows; default: 3/4 of the crop.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="The output with the logits, where a file has several.")
    ] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="That the network applies; default: none.")
    ] = None,
    reduce_zero_label: Annotated[
        bool | None,
        typer.Option("--reduce-zero-label", help="Label maps count from 1, and 0 is void."),
    ] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(
            min=0, help="Void label; default: the taxonomy's, or 255, from 256 classes on 65535."
        ),
    ] = None,
    reference: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="IMAGE LOGITS",
            help="An image and its logits (.npy or .pt) from the model's own framework.",
        ),
    ] = None,
) -> None:
    """Import a model file, or a network of a framework, if it loads and matches its card."""
    labels: dict[str, object] = (
        {"taxonomy": taxonomy}
        if classes is None
        else {"classes": classes_with_colors([part.strip() for part in classes.split(",")])}
    )
    values: dict[str, object] = {
        "title": title, "license": license_, "source": source,
        "input": present({
            "mean": mean, "std": std, "size": size, "multiple_of": multiple_of,
            "channels": channels, "resample": resample, "fit": fit,
            "mode": mode, "crop": crop, "stride": stride,
        }),
        "output": present({
            "name": output, "activation": activation, "reduce_zero_label": reduce_zero_label,
            "ignore_index": ignore_index, **labels,
        }),
    }  # fmt: skip
    settings = load_settings()
    framework, _, location = origin.partition(":")
    if framework in FRAMEWORKS:
        if any(given is not None for given in (card, reference)) or (classes and taxonomy):
            raise ArgumentError("expected none of --card and --reference, and one list of classes")
        model = open_source(framework, location, weights, Options(size, mean, std))
        made = import_framework(model, name, values, settings)
        console.print(f"ONNX Runtime differs from torch by at most {made.difference:.2g}")
        report_import(made.imported)
        return
    path = Path(origin)
    if not path.is_file() or weights is not None:
        raise ArgumentError(
            f"expected a file, or one of {', '.join(f'{key}:' for key in FRAMEWORKS)} with a name "
            f"or path, got {origin}" + (f" and {weights}" if weights else "")
        )
    if sum(given is not None for given in (card, classes, taxonomy)) != 1:
        raise ArgumentError("expected one of --card, --classes and --taxonomy")
    if card is not None:
        values = read_card(card)
    else:
        given = dict(values["input"])  # type: ignore[call-overload]
        values["input"] = filled = fill_size(given, path, settings)
        report_size(path, given, filled)
    pair = None if reference is None else Reference(*reference)
    report_import(import_model(path, name, values, settings, pair))


def present(values: Mapping[str, object]) -> dict[str, object]:
    """Return the options that were given."""
    return {key: value for key, value in values.items() if value is not None}


def report_size(path: Path, given: Mapping[str, object], filled: Mapping[str, object]) -> None:
    """Print which size or crop was read from a file, and the option for the alternative."""
    for key, use in (
        ("size", "images are resized to it; --mode slide cuts windows instead"),
        ("crop", "windows are cut; with --mode whole images are resized instead"),
    ):
        if key not in given and isinstance(side := filled.get(key), tuple):
            text = f"{path.name} takes {side[0]}x{side[1]} (height x width) only: {use}"
            console.print(text, markup=False, soft_wrap=True)


def report_import(imported: ImportedModel) -> None:
    """Print an imported model's hash, its agreement with the reference and its warnings."""
    folder, agreement = imported.folder, imported.agreement
    for warning in imported.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    if agreement is not None:
        console.print(
            f"logits differ from the reference by at most {agreement.largest_difference:.3g}; "
            f"{agreement.label_agreement:.4%} of the labels agree",
            soft_wrap=True,
        )
    console.print(
        f"{folder.card.name} can be served: {folder.num_classes} classes, {folder.sha256[:12]}"
    )


def quantize_command(
    images: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Images that ranges come from.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Default: the configured model, else the default or only one."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="For comparison; default: every second."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Label maps for comparison.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The new model; default: NAME-int8.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most images to use for ranges.")] = 64,
    ranges: Annotated[Ranges, typer.Option()] = "minmax",
) -> None:
    """Quantise an ONNX model to int8, compare it with the original, and add it as a new model."""
    settings = load_settings()
    folder = find_model(settings, model)
    original = open_predictor(folder, settings.device, settings.threads)
    chosen, measured = split_images(images, held_out, labels, limit)
    with (
        Progress(console=console) as progress,
        new_model(settings.models_dir, out or f"{folder.card.name}-int8") as target,
    ):
        task = progress.add_task(f"ranges of {len(chosen)} images", total=len(measured))
        quantize_model(original, chosen, target / "model.onnx", ranges, settings.max_pixels)
        progress.update(task, description="measuring")
        write_card(target, int8_card(folder, ranges, len(chosen)))
        quantized = open_predictor(read_model_folder(target), settings.device, settings.threads)
        report = measure(
            original,
            quantized,
            measured,
            folder.card.output.ignore_index,
            settings.max_pixels,
            TIMED_RUNS,
            settings.threads,
            lambda: progress.advance(task),
        )
        write_report(target, int8_card(folder, ranges, len(chosen)), report, quantized)
        name = target.name
    Console().print(report_table(name, report))
    console.print(f"{name} is a model of its own: calibrate it with `segcal calibrate`")


def split_images(
    images: Path, held_out: Path | None, labels: Path | None, limit: int
) -> tuple[list[Path], list[Path | Pair]]:
    """Choose images for the ranges, at most `limit`, evenly spread, and others to compare on.

    Raises ArgumentError for too few images.
    """
    files = list(images_by_stem(images).values())
    if len(files) < (1 if held_out else 2):
        raise ArgumentError(f"--images: expected more images, got {len(files)}")
    fitting = files if held_out else files[::2]
    stride = max(1, -(-len(fitting) // limit))
    if labels is None:
        others = list(images_by_stem(held_out).values()) if held_out else files[1::2]
        return fitting[::stride], list(others)
    pairs = find_pairs(held_out or images, labels)
    return fitting[::stride], list(pairs if held_out else pairs[1::2])


def int8_card(folder: ModelFolder, ranges: Ranges, images: int) -> dict[str, object]:
    """Return the values of the int8 model's card, from its original's."""
    values = tomllib.loads((folder.path.parent / CARD).read_text("utf-8"))
    title, source = folder.card.title or folder.card.name, folder.card.source
    origin = (
        f"int8 (static, QDQ, per channel, 7-bit weights; {ranges} over {images} images) of "
        f"{folder.card.name} {folder.sha256[:12]}"
    )
    new = {"file": "model.onnx", "title": f"{title}, int8", "metrics": {}}
    return values | new | {"source": f"{source}; {origin}" if source else origin}


def write_report(
    target: Path, card: dict[str, object], report: QuantizationReport, quantized: Predictor
) -> None:
    """Write the whole report beside the card, and its main metrics into the card."""
    metrics: dict[str, object] = {
        "label_agreement": round(report.label_agreement, 5),
        "confidence_shift": round(report.confidence_shift, 5),
        "milliseconds_before": round(report.milliseconds_before, 2),
        "milliseconds_after": round(report.milliseconds_after, 2),
    }
    if report.before and report.after:
        metrics |= {
            "miou_before": round(report.before.miou, 4),
            "miou_after": round(report.after.miou, 4),
            "ece_image_before": round(report.before.ece_image, 4),
            "ece_image_after": round(report.after.ece_image, 4),
        }
    write_card(target, {**card, "metrics": metrics})
    record = {"model_sha256": quantized.folder.sha256, **asdict(report)}
    with storage("the quantization report"):
        write_json(target / REPORT_FILE, record)


def report_table(name: str, report: QuantizationReport) -> Table:
    """Return a table of both models' size, latency, labels, confidence and quality."""
    table = Table("", "original", "int8", title=f"{name}, on {report.images} held-out images")
    table.add_row("bytes", str(report.bytes_before), str(report.bytes_after))
    speed = report.milliseconds_before / report.milliseconds_after
    table.add_row(
        f"backbone, ms, {report.threads} threads",
        f"{report.milliseconds_before:.1f}",
        f"{report.milliseconds_after:.1f} ({speed:.2f} times as fast)",
    )
    table.add_row("same label", "", f"{report.label_agreement:.4%}")
    table.add_row("confidence, mean change", "", f"{report.confidence_shift:+.5f}")
    table.add_row("confidence, mean absolute change", "", f"{report.confidence_shift_absolute:.5f}")
    if report.before and report.after:
        for label, field in (
            ("mIoU", "miou"),
            ("ECE image-wise, 10 bins", "ece_image"),
            ("ECE pooled, 15 bins", "ece_pooled"),
        ):
            values = (f"{getattr(part, field):.4f}" for part in (report.before, report.after))
            table.add_row(label, *values)
    return table
