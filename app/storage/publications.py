"""Documents that the running processes of a service publish to each other, one of each process.

They are in a folder, or below a prefix of a bucket. Times are seconds since the epoch by the clock
of the file system or of the store, so that the clocks of machines are not compared.
"""

import re
from pathlib import Path
from typing import Protocol

from app.storage.files import replace_file, storage
from app.storage.objects import Objects

PUBLISHER_PATTERN = re.compile(r"[0-9a-f]{16}")
ENDING = ".json"


class Publications(Protocol):
    """The last document of each publisher, whose id matches `PUBLISHER_PATTERN`.

    All methods raise StorageError or UnavailableError where the documents can't be reached.
    """

    def put(self, publisher: str, document: bytes) -> None:
        """Replace a publisher's document atomically."""

    def published_at(self) -> dict[str, float]:
        """Return the time of each publisher's document."""

    def read(self, publisher: str) -> bytes | None:
        """Read a publisher's document; None without one."""

    def delete(self, publisher: str) -> None:
        """Delete a publisher's document, which may be missing."""


class FolderPublications:
    """Documents in files of a folder, which is created with the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, publisher: str, document: bytes) -> None:
        """Replace a publisher's file atomically."""
        with storage("a published document"):
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._path(publisher), document)

    def published_at(self) -> dict[str, float]:
        """Return the time of each file."""
        times = {}
        with storage("a published document"):
            for path in self._folder.glob(f"*{ENDING}"):
                try:
                    times[path.name] = path.stat().st_mtime
                except FileNotFoundError:  # deleted meanwhile
                    continue
        return publishers(times)

    def read(self, publisher: str) -> bytes | None:
        """Read a file; None without one."""
        with storage("a published document"):
            try:
                return self._path(publisher).read_bytes()
            except FileNotFoundError:
                return None

    def delete(self, publisher: str) -> None:
        """Delete a file."""
        with storage("a published document"):
            self._path(publisher).unlink(missing_ok=True)

    def _path(self, publisher: str) -> Path:
        return self._folder / f"{publisher}{ENDING}"


class ObjectPublications:
    """Documents in objects below a prefix of a bucket."""

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects, self._prefix = objects, prefix

    def put(self, publisher: str, document: bytes) -> None:
        """Replace a publisher's object."""
        self._objects.overwrite(self._path(publisher), document)

    def published_at(self) -> dict[str, float]:
        """Return the time of each object."""
        return publishers(self._objects.modified_at(self._prefix))

    def read(self, publisher: str) -> bytes | None:
        """Read an object; None without one."""
        found = self._objects.read(self._path(publisher))
        return None if found is None else found.data

    def delete(self, publisher: str) -> None:
        """Delete an object."""
        self._objects.delete(self._path(publisher))

    def _path(self, publisher: str) -> str:
        return f"{self._prefix}/{publisher}{ENDING}"


def publishers(times: dict[str, float]) -> dict[str, float]:
    """Return the times by publisher, of those names that are a publisher's."""
    named = {name.removesuffix(ENDING): time for name, time in times.items()}
    return {name: time for name, time in named.items() if PUBLISHER_PATTERN.fullmatch(name)}
