"""Versions in a folder: immutable files, an atomic pointer to the active one, and its history.

    <root>/<model>/<id>/manifest.json, calibrator.safetensors, report.json, reference.safetensors
    <root>/<model>/active            the active version's id
    <root>/<model>/history.jsonl     time, version, author and reason of each activation
    <root>/<model>/.lock             held while any of these is changed

A version is written to a temporary folder, synced, and renamed; `active` is replaced the same way.
A crash at any instant leaves the old state or the new one; its temporary files are removed with the
next change or start. Readers need no lock. An id is matched against `ID_PATTERN` before it is
joined to a path.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.errors import ArtifactError, ConflictError, NotFoundError, SegcalError
from app.schemas.calibrator import Manifest
from app.storage.backend import ID_PATTERN, POINTER, Lease
from app.storage.files import locked, replace_file, storage, sync_folder, write_synced
from app.storage.manifest import check_version, timestamp

log = logging.getLogger(__name__)

TAIL_BYTES = 64 << 10  # read to find the last line; a line has about 300 bytes
LEFTOVERS = (".*.tmp", ".*.deleted")  # temporary files of a change that a crash interrupted
POINTER_BYTES = 200  # read of the pointer; an id has at most 60


@dataclass(frozen=True)
class FolderVersion:
    """The files of one version in its folder, whose name is the version's id."""

    folder: Path

    @property
    def id(self) -> str:
        """Return the version's id."""
        return self.folder.name

    def read(self, name: str) -> bytes:
        """Read a file unverified; raises ArtifactError, NotFoundError, without a path in them."""
        try:
            with (self.folder / name).open("rb") as file:
                return file.read()
        except OSError as error:
            if not self.folder.is_dir():  # deleted since it was found
                raise NotFoundError(f"expected the id of a calibrator, got {self.id!r}") from error
            raise ArtifactError(f"{self.id}: expected {name}, got: {error.strerror}") from error

    def has(self, name: str) -> bool:
        """Return whether the version has a file."""
        return (self.folder / name).exists()


class NoLease:
    """The lease of a fit in a folder, whose jobs a lock keeps apart."""

    def check(self) -> None:
        """Do nothing."""


class History:
    """Append-only log of one model's activations, as JSON lines; write under the model's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, at: str, calibrator: str, by: str, reason: str) -> int:
        """Append and sync a line; return the file's length before it, in bytes.

        An incomplete line, left by a crash, stays on a line of its own.
        """
        _move_folder_aside(self._path)
        line = json.dumps({"at": at, "calibrator": calibrator, "by": by, "reason": reason})
        # Unbuffered: closing a buffered file would repeat a failed write.
        with self._path.open("a+b", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            try:
                data = _line_after(file, line)
                while data:  # a disk that fills up writes a part
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), length)
                raise
        return length

    def withdraw(self, length: int) -> None:
        """Remove the last line, whose activation failed; `length` is the result of `append`."""
        os.truncate(self._path, length)

    def last(self) -> str | None:
        """Return the calibrator of the last complete line, None where there is none."""
        return next(self.newest_first(), None)

    def newest_first(self) -> Iterator[str]:
        """Yield the calibrators of the last complete lines, newest first."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:  # for example missing
            return
        for line in reversed(lines):
            try:
                yield str(json.loads(line)["calibrator"])
            except (ValueError, TypeError, KeyError, RecursionError):  # incomplete or damaged
                continue


def _move_folder_aside(path: Path) -> None:
    """Rename a folder in the place of a file: it is damage that no file can replace."""
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}"))


def _line_after(file: IO[bytes], text: str) -> bytes:
    """Encode a line to append, with a line break before it where the last line is incomplete."""
    if file.seek(0, os.SEEK_END) == 0:
        return f"{text}\n".encode()
    file.seek(-1, os.SEEK_END)
    return (text if file.read(1) == b"\n" else f"\n{text}").encode() + b"\n"


class FolderBackend:
    """Storage in one folder, on a file system whose locks and renames hold for all processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        """Do nothing: a folder keeps changes apart by locks."""

    def ids(self, model: str) -> list[str]:
        """List the ids of a model's versions, newest first."""
        folders = sorted((self._root / model).glob("*"), reverse=True)
        return [path.name for path in folders if ID_PATTERN.fullmatch(path.name) and path.is_dir()]

    def model_of(self, version: str) -> str | None:
        """Return the model of a version; None where there is none."""
        for folder in self._root.glob(f"*/{version}"):
            return folder.parent.name
        return None

    def files(self, model: str, version: str) -> FolderVersion | None:
        """Return a version's files; None where there is none."""
        folder = self._root / model / version
        return FolderVersion(folder) if folder.is_dir() else None

    def active_id(self, model: str, *, latest: bool = False) -> str | None:
        """Read the id of the active version; every reading is the latest."""
        del latest
        try:
            with (self._root / model / POINTER).open("rb") as file:
                version = file.read(POINTER_BYTES).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(
                f"{POINTER} of {model}: expected a file with a calibrator's id, "
                f"got: {error.strerror}"
            ) from error
        if not ID_PATTERN.fullmatch(version):
            raise ArtifactError(
                f"{POINTER} of {model}: expected a calibrator's id, got {version[:80]!a}"
            )
        return version

    def activated(self, model: str) -> Iterator[str]:
        """Yield the ids of the activated versions, latest activation first."""
        return History(self._root / model / "history.jsonl").newest_first()

    def add(self, manifest: Manifest, contents: dict[str, bytes], lease: Lease | None) -> None:
        """Write a version's files to a temporary folder, and rename it."""
        del lease
        folder = self._root / manifest.model
        staging = folder / f".{manifest.id}.tmp"
        with storage("a calibrator"):
            folder.mkdir(parents=True, exist_ok=True)
            with self._changing(manifest.model):
                if (folder / manifest.id).exists():
                    return
                staging.mkdir()
                try:
                    for name, data in contents.items():
                        write_synced(staging / name, data)
                    sync_folder(staging)
                    staging.rename(folder / manifest.id)
                    sync_folder(folder)
                except BaseException:
                    shutil.rmtree(staging, ignore_errors=True)
                    raise

    def delete(self, model: str, version: str) -> None:
        """Rename a version's folder, and remove it."""
        with storage("a calibrator"), self._changing(model):
            folder = self._existing(model, version)
            if version == self.active_id(model):
                raise ConflictError(f"expected a calibrator that is not active, got {version}")
            renamed = folder.with_name(f".{version}.deleted")
            folder.rename(renamed)
            sync_folder(folder.parent)
            shutil.rmtree(renamed, ignore_errors=True)

    def activate(self, model: str, version: str, reason: str, by: str, lease: Lease | None) -> None:
        """Append an activation to the history, and replace the pointer."""
        del lease
        with storage("a calibrator"), self._changing(model) as history:
            folder = self._existing(model, version).parent
            check_version(FolderVersion(folder / version))
            # History first: no version may become active without an entry.
            length = history.append(timestamp(), version, by, reason)
            try:
                _move_folder_aside(folder / POINTER)
                replace_file(folder / POINTER, f"{version}\n".encode("ascii"))
            except BaseException:
                history.withdraw(length)
                raise
            sync_folder(folder)

    def recover(self) -> None:
        """Remove the temporary files of interrupted changes, of all models."""
        for folder in self._root.glob("[!.]*/"):
            try:
                with self._changing(folder.name):
                    pass
            except (OSError, SegcalError) as error:  # for example a read-only folder
                log.warning("temporary files of %s can't be removed: %s", folder.name, error)

    @contextmanager
    def lease(self, model: str, by: str) -> Iterator[NoLease]:
        """Yield a lease that is always valid."""
        del model, by
        yield NoLease()

    @contextmanager
    def _changing(self, model: str) -> Iterator[History]:
        """Hold the lock of a model's folder; first remove what an interrupted change left there."""
        folder = self._root / model
        history = History(folder / "history.jsonl")
        with locked(folder / ".lock"):
            for path in (path for pattern in LEFTOVERS for path in folder.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            with suppress(ArtifactError):  # a damaged pointer is reported when it is used
                active = self.active_id(model)
                if active is not None and history.last() != active:
                    history.append(timestamp(), active, "recovery", "found active after a crash")
            yield history

    def _existing(self, model: str, version: str) -> Path:
        """Return a version's folder; raises NotFoundError."""
        folder = self._root / model / version
        if not folder.is_dir():
            raise NotFoundError(f"expected the id of a calibrator of {model}, got {version!r}")
        return folder
