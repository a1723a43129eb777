"""Import models: create a model folder atomically, write its card, and test the model."""

import json
import math
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.conversion.reference import Agreement, compare, read_reference, require_agreement
from app.datasets.images import read_image
from app.errors import ArgumentError, ConflictError, ModelError
from app.inference.backbone import first_line, open_backbone
from app.inference.checkpoints import describe_checkpoint
from app.inference.model_card import (
    CARD,
    InputPolicy,
    ModelFolder,
    model_files,
    read_model_folder,
)
from app.inference.predictor import Predictor, open_predictor
from app.settings import Settings
from app.storage.files import storage, sync_folder

ENDINGS = (".onnx", ".pt2", ".pt")
TABLES = ("input", "output", "metrics")  # of a card
TRIAL_SIZE = (97, 131)  # of the trial image; prime, so that resizing and padding are tested


@dataclass(frozen=True)
class Reference:
    """Files of an image and of its logits from the model's own framework."""

    image: Path
    logits: Path


@dataclass(frozen=True)
class ImportedModel:
    """An imported model, its warnings, and its agreement with the reference, None without one."""

    folder: ModelFolder
    warnings: tuple[str, ...]
    agreement: Agreement | None


def import_model(
    source: Path,
    name: str,
    card: Mapping[str, object],
    settings: Settings,
    reference: Reference | None = None,
) -> ImportedModel:
    """Copy a model and the weights beside it into the models directory, if it passes a trial.

    Raises ModelError where the file does not load, its output does not match the card, or its
    labels do not agree with the reference, and the errors of `new_model` and `read_reference`.
    """
    check_ending(source)
    expected = None if reference is None else read_reference(reference.logits)
    agreement = None
    with new_model(settings.models_dir, name) as folder:
        for path in model_files(source):
            shutil.copyfile(path, folder / path.name)
        predictor = open_imported(folder, {**card, "file": source.name}, settings)
        if reference is not None and expected is not None:
            scaling = predictor.folder.card.input.scaling
            image = read_image(reference.image, settings.max_pixels, scaling)
            agreement = compare(predictor, image, expected)
            require_agreement(agreement)
    imported = read_model_folder(settings.models_dir / name)
    return ImportedModel(imported, predictor.warnings, agreement)


def open_imported(folder: Path, card: Mapping[str, object], settings: Settings) -> Predictor:
    """Write the card of a new model and load it; raises ModelError unless its logits are valid."""
    write_card(folder, card)
    predictor = open_predictor(read_model_folder(folder), settings.device, settings.threads)
    try_model(predictor)
    return predictor


def check_ending(source: Path) -> None:
    """Raise ArgumentError for a file that does not end like a model, with its kind if known."""
    if source.suffix not in ENDINGS:
        checkpoint = describe_checkpoint(source)
        raise ArgumentError(
            f"expected a file that ends in {', '.join(ENDINGS)}, got {source.name}"
            + ("" if checkpoint is None else f", {checkpoint}")
        )


def fill_size(policy: Mapping[str, object], source: Path, settings: Settings) -> dict[str, object]:
    """Complete the values of an input policy by the size that a file was exported for.

    Without a fixed size only the stride of windows is filled in. Raises ModelError for a file that
    does not load.
    """
    check_ending(source)
    filled, default = dict(policy), InputPolicy().multiple_of
    shape = open_backbone(source, settings.device, settings.threads).input_shape
    if shape[2] is not None and shape[3] is not None:
        side = "crop" if policy.get("mode") == "slide" else "size"
        filled.setdefault(side, (shape[2], shape[3]))
        # Padding beyond a fixed size is not possible.
        filled.setdefault("multiple_of", math.gcd(shape[2], shape[3], default))
    crop, multiple = filled.get("crop"), filled.get("multiple_of", default)
    if isinstance(crop, tuple) and isinstance(multiple, int):
        strides = (max(3 * side // 4 // multiple * multiple, multiple) for side in crop)
        filled.setdefault("stride", tuple(strides))
    return filled


def try_model(predictor: Predictor) -> None:
    """Run a model on an image of noise; raises ModelError unless its logits are finite."""
    model = predictor.folder
    noise = np.random.default_rng(0).integers(0, 256, (*TRIAL_SIZE, 3), dtype=np.uint8)
    images = predictor.first_window(noise)
    try:
        logits = predictor.backbone(images.numpy())
    except Exception as error:
        height, width = images.shape[2:]
        raise ModelError(
            f"{model.card.name}: expected a model that takes [1,3,{height},{width}] as well, "
            f"got: {first_line(error)}; for a network of one size set it with --size H W"
        ) from error
    if not np.isfinite(logits).all():
        raise ModelError(f"{model.card.name}: expected finite logits, got NaN or infinite ones")
    if np.ptp(logits, axis=1).max() == 0:
        raise ModelError(f"{model.card.name}: expected logits, got the same for every class")


@contextmanager
def new_model(models_dir: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder to fill, which is renamed to the model's at the end of the block.

    Raises ConflictError if there is a model of this name, ArgumentError for a name that is not a
    plain file name, StorageError.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ArgumentError(f"expected a plain word as the model's name, got {name!r}")
    target = models_dir / name
    staging = models_dir / f".{secrets.token_hex(6)}.tmp"  # hidden folders are not listed as models
    with storage(f"the model {name}"):
        if target.exists():
            raise ConflictError(f"expected a new name, got {name}, which is a model already")
        (staging / name).mkdir(parents=True)
        try:
            yield staging / name
            (staging / name).rename(target)
            sync_folder(models_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def write_card(folder: Path, values: Mapping[str, object]) -> None:
    """Write a card, plain values first and then the tables, under the folder's name."""
    values = {**values, "name": folder.name}
    plain = {key: value for key, value in values.items() if key not in TABLES}
    lines = [f"{key} = {toml(value)}" for key, value in plain.items()]
    for table in TABLES:
        entries = values.get(table)
        if isinstance(entries, Mapping) and entries:
            lines += ["", f"[{table}]", *(f"{k} = {toml(entry)}" for k, entry in entries.items())]
    (folder / CARD).write_text("\n".join(lines) + "\n", "utf-8")


def toml(value: object) -> str:
    """Format a string, number, boolean, array or inline table as TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_card(path: Path) -> dict[str, object]:
    """Read the values of a card for an import; raises ArgumentError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ArgumentError(f"--card: expected a file of TOML, got: {error}") from error
