"""Damage a stored calibrator's files; requests must name the damage and spare other models."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.inputs import IMAGES
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import ADMIN, Request

DAMAGED, WHOLE = "damaged", "tiny"  # models of the served folder
UNAVAILABLE = frozenset({503})  # the active calibrator is damaged
IMAGE = {"Content-Type": "image/png"}


def requests_on(version: str) -> Iterator[Request]:
    """Yield requests that read the damaged model's files, then some on the whole model."""
    read = (f"/calibrators/{version}{part}" for part in ("", "/report", "/reliability.svg"))
    for path in (*read, "/calibrators", f"/calibrators?model={DAMAGED}", "/models"):
        yield Request("GET", path, expected=UNAVAILABLE)
    yield Request("GET", f"/calibrators/{version}/archive", expected=UNAVAILABLE)
    path = f"/segment?model={DAMAGED}"
    yield Request("POST", path, IMAGE, IMAGES["small"], UNAVAILABLE)
    yield Request("POST", f"{path}&calibrator={version}", IMAGE, IMAGES["small"], UNAVAILABLE)
    yield Request("POST", f"/calibrators/{version}/activate", ADMIN, expected=UNAVAILABLE)
    yield Request("POST", f"/segment?model={WHOLE}", IMAGE, IMAGES["small"])


class Damage:
    """Mutates one file in the artifacts of a model, and restores all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = folder.with_name(f".{folder.name}.whole")
        shutil.copytree(folder, self._whole)
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        self._files = sorted(path.relative_to(folder) for path in files)
        self.version = (folder / "active").read_text().strip()

    def apply(self, seed: int) -> None:
        """Mutate, empty, remove or replace by a folder one file, drawn from the seed."""
        draw = random.Random(seed)
        path = self._folder / draw.choice(self._files)
        kind = draw.random()
        data = path.read_bytes()
        path.unlink()
        if kind < 0.8:
            path.write_bytes(mutated(data, seed))
        elif kind < 0.9:
            path.mkdir()

    def restore(self) -> None:
        """Restore all files."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._whole, self._folder, dirs_exist_ok=True)
