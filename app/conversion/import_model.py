"""New models: a folder that appears whole or not at all, with a card written from its values.

A model file from elsewhere becomes a folder that is served, if it does what its card says.
"""

import colorsys
import json
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from app.errors import ArgumentError, ConflictError, ModelError
from app.inference.model_card import CARD, ModelFolder, read_model_folder
from app.inference.predictor import open_predictor
from app.settings import Settings
from app.storage.files import storage, sync_folder


@contextmanager
def new_model(models_dir: Path, name: str) -> Iterator[Path]:
    """Give a folder to fill, out of the service's sight; at the end it takes its place by rename.

    Raises ConflictError where a model of this name is there, ArgumentError for a name that is no
    plain word, StorageError.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ArgumentError(f"expected a plain word as the model's name, got {name!r}")
    target = models_dir / name
    staging = models_dir / f".{secrets.token_hex(6)}.tmp"  # hidden folders are no models
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
    """Write a card: plain values first, then the tables; its name becomes the folder's."""
    values = {**values, "name": folder.name}
    plain = {key: value for key, value in values.items() if key not in TABLES}
    lines = [f"{key} = {toml(value)}" for key, value in plain.items()]
    for table in TABLES:
        entries = values.get(table)
        if isinstance(entries, Mapping) and entries:
            lines += [
                "",
                f"[{table}]",
                *(f"{key} = {toml(entry)}" for key, entry in entries.items()),
            ]
    (folder / CARD).write_text("\n".join(lines) + "\n", "utf-8")


TABLES = ("input", "output", "metrics")


def toml(value: object) -> str:
    """Write a text, number, array or inline table in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


ENDINGS = (".onnx", ".pt2", ".pt")
GOLDEN = 0.618033988749895  # of the colour circle: hues that follow one another are far apart
TRIAL_SIDES = (97, 131)  # of the image that is tried; no multiple of anything


def import_model(
    source: Path, name: str, card: Mapping[str, object], settings: Settings
) -> ModelFolder:
    """Copy a model into the models directory, once it has segmented an image of noise.

    Weights that an exporter put beside the file, named after it, come along. Raises ModelError
    where the file does not load or its output does not fit the card, and what `new_model` does.
    """
    if source.suffix not in ENDINGS:
        raise ArgumentError(f"expected a file that ends in {', '.join(ENDINGS)}, got {source.name}")
    with new_model(settings.models_dir, name) as folder:
        beside = sorted(p for p in source.parent.glob(f"{source.name}[._]*") if p.is_file())
        for path in (source, *beside):
            shutil.copyfile(path, folder / path.name)
        write_card(folder, {**card, "file": source.name})
        model = read_model_folder(folder)
        try_model(model, settings)
    return read_model_folder(settings.models_dir / name)


def try_model(model: ModelFolder, settings: Settings) -> None:
    """Run an image of noise through a model; raises ModelError unless finite logits come out."""
    predictor = open_predictor(model, settings.device, settings.threads)
    noise = np.random.default_rng(0).integers(0, 256, (*TRIAL_SIDES, 3), dtype=np.uint8)
    images, _ = predictor.prepare(noise)
    if model.card.input.mode == "slide":
        images = predictor.prepare_windows(noise).windows.cut(0, 0)
    try:
        logits = predictor.backbone(images.numpy())
    except Exception as error:
        height, width = images.shape[2:]
        raise ModelError(
            f"{model.card.name}: expected a model that takes [1,3,{height},{width}] as well, "
            f"got: {str(error).splitlines()[0][:300]}"
        ) from error
    if not np.isfinite(logits).all():
        raise ModelError(f"{model.card.name}: expected finite logits, got NaN or infinite ones")
    if np.ptp(logits, axis=1).max() == 0:
        raise ModelError(f"{model.card.name}: expected logits, got the same for every class")


def card_from(path: Path) -> dict[str, object]:
    """Read a card to import a model with; its name and file are replaced."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ArgumentError(f"--card: expected a file of TOML, got: {error}") from error


def classes_named(names: Sequence[str]) -> list[dict[str, str]]:
    """Give class names colours that can be told apart."""
    colors = (
        colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.75 if index % 2 else 0.5, 0.9)
        for index in range(len(names))
    )
    return [
        {"name": name, "color": "#" + "".join(f"{round(255 * part):02x}" for part in color)}
        for name, color in zip(names, colors, strict=True)
    ]
