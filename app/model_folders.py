"""New models: a folder that appears whole or not at all, with a card written from its values."""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.disk import storage, sync_folder
from app.errors import ArgumentError, ConflictError
from app.inference.card import CARD


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
