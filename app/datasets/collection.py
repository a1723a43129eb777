"""Labelled images that are collected one by one, until there are enough for a fit.

    <root>/images/<key>.<ending>    images as they were encoded; <key> names an image at its source
    <root>/labels/<key>.png         label maps
    <root>/new/<key>                empty files: collected or changed since the last fit
    <root>/pending/<name>           empty files: announced, and still to be collected

Files are replaced atomically. An image counts once its label map is there as well.
"""

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.datasets.images import images_by_stem
from app.datasets.uploads import IMAGE_FILES, LABEL_FILES, NAMES
from app.errors import BusyError
from app.imaging.decode import FORMATS
from app.storage.files import replace_file, storage

PENDING = 10_000  # announced names that are kept
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
KEY = re.compile(r"[a-z0-9-]{1,80}")
WHAT = "a collected image"

Labels = NDArray[np.uint8] | NDArray[np.uint16]


class StoredPair(NamedTuple):
    """The files of a collected image and of its label map."""

    image: Path
    labels: Path


class Collection:
    """Labelled images of one model in a folder, of at most `max_bytes`; the oldest go first.

    One process at a time may collect; any may announce. Methods that write raise StorageError.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self._max_bytes = root, max_bytes

    def announce(self, name: str) -> None:
        """Record a name that is to be collected; raises BusyError where too many are waiting."""
        if len(self.pending()) >= PENDING:
            raise BusyError(f"expected fewer than {PENDING} annotations waiting, got {PENDING}")
        with storage(WHAT):
            self._touch("pending", name)

    def pending(self) -> list[str]:
        """List the announced names, sorted."""
        return self._names("pending")

    def withdraw(self, name: str) -> None:
        """Remove an announced name."""
        (self.root / "pending" / name).unlink(missing_ok=True)

    def add(self, key: str, image: bytes, labels: Labels) -> None:
        """Store a decodable image with its label map [H,W], in place of those with its key.

        The same ones again change nothing, so that an image counts as new once.
        """
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            ending = ENDINGS[opened.format or ""]
        buffer = io.BytesIO()
        Image.fromarray(labels).save(buffer, "PNG")
        new, known = (image, buffer.getvalue()), self.pairs().get(key)
        with storage(WHAT):
            if known and new == (known.image.read_bytes(), known.labels.read_bytes()):
                return
            self.remove(key)
            for folder, suffix, data in (
                ("images", ending, image),
                ("labels", ".png", buffer.getvalue()),
            ):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
                replace_file(self.root / folder / f"{_checked(key)}{suffix}", data)
            self._touch("new", key)
            self._evict()

    def remove(self, key: str) -> None:
        """Delete an image and its label map, if there are any."""
        for folder in ("images", "labels", "new"):
            for path in (self.root / folder).glob(f"{_checked(key)}*"):
                if path.stem == key:
                    path.unlink(missing_ok=True)

    def new(self) -> list[str]:
        """List the keys of the images collected since the last fit, sorted."""
        return self._names("new")

    def mark_fitted(self, keys: list[str]) -> None:
        """Record that a fit has these images."""
        for key in keys:
            (self.root / "new" / key).unlink(missing_ok=True)

    def pairs(self) -> dict[str, StoredPair]:
        """Return the files of each image by key, sorted."""
        if not (self.root / "labels").is_dir():
            return {}
        images = images_by_stem(self.root / "images")
        labels = images_by_stem(self.root / "labels")
        keys = sorted(set(images) & set(labels))
        return {key: StoredPair(images[key], labels[key]) for key in keys}

    def copy_to(self, upload: Path) -> int:
        """Link all images into an unpacked upload (see `uploads`); return their number."""
        pairs = self.pairs()
        with storage(WHAT):
            for folder in (IMAGE_FILES, LABEL_FILES):
                (upload / folder).mkdir()
            for number, pair in enumerate(pairs.values()):
                for folder, path in ((IMAGE_FILES, pair.image), (LABEL_FILES, pair.labels)):
                    _link(path, upload / folder / f"{number:06d}{path.suffix}")
            (upload / NAMES).write_text(json.dumps(list(pairs)), "utf-8")
        return len(pairs)

    def _evict(self) -> None:
        """Delete the oldest images above the limit of bytes."""
        pairs = self.pairs()
        sizes = {
            key: pair.image.stat().st_size + pair.labels.stat().st_size
            for key, pair in pairs.items()
        }
        total = sum(sizes.values())
        for key in sorted(pairs, key=lambda key: pairs[key].labels.stat().st_mtime_ns):
            if total <= self._max_bytes:
                break
            self.remove(key)
            total -= sizes[key]

    def _names(self, folder: str) -> list[str]:
        path = self.root / folder
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def _touch(self, folder: str, name: str) -> None:
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / folder / _checked(name)).touch()


def _checked(name: str) -> str:
    """Return a name that may be joined to a path; raises ValueError for any other."""
    if not KEY.fullmatch(name):
        raise ValueError(f"expected a key of letters, digits and dashes, got {name[:80]!r}")
    return name


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
