"""Calibrators on disk: immutable versions, an atomic pointer to the active one, and its history.

    <root>/<model>/<id>/manifest.json, calibrator.safetensors, report.json, reference.safetensors
    <root>/<model>/active            the active version's id
    <root>/<model>/history.jsonl     time, version, author and reason of each activation
    <root>/<model>/.lock             held while any of these is changed

A version is written to a temporary folder, synced, and renamed; `active` is replaced the same way.
A crash at any instant leaves the old state or the new one; its temporary files are removed with the
next change or start. Readers need no lock. An id is matched against `ID_PATTERN` before it is
joined to a path.
"""

import io
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.calibration.base import Calibrator
from app.calibration.drift import Reference
from app.errors import ArtifactError, ConflictError, NotFoundError
from app.storage.files import locked, replace_file, storage, sync_folder
from app.storage.manifest import (
    FILES,
    REFERENCE,
    Manifest,
    StoredCalibrator,
    read_manifest,
    read_version,
    timestamp,
    write_version,
)

log = logging.getLogger(__name__)

TAIL_BYTES = 64 << 10  # read to find the last line; a line has about 300 bytes
LEFTOVERS = (".*.tmp", ".*.deleted")  # temporary files of a change that a crash interrupted
# Older versions may have a plus, which a query must write as %2B.
ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9_+]+-[0-9a-f]{6}")


class History:
    """Append-only log of one model's activations, as JSON lines; write under the model's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, at: str, calibrator: str, by: str, reason: str) -> int:
        """Append and sync a line; return the file's length before it, in bytes.

        An incomplete line, left by a crash, stays on a line of its own.
        """
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
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return None
        for line in reversed(lines):
            try:
                return str(json.loads(line)["calibrator"])
            except (ValueError, TypeError, KeyError):  # incomplete, after a crash
                continue
        return None


def _line_after(file: IO[bytes], text: str) -> bytes:
    """Encode a line to append, with a line break before it where the last line is incomplete."""
    if file.seek(0, os.SEEK_END) == 0:
        return f"{text}\n".encode()
    file.seek(-1, os.SEEK_END)
    return (text if file.read(1) == b"\n" else f"\n{text}").encode() + b"\n"


class ArtifactStore:
    """All versions of all models in one folder, which any number of processes may share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loaded: dict[str, StoredCalibrator] = {}
        self._unusable: set[str] = set()  # logged once each

    def versions(self, model: str) -> list[Manifest]:
        """List a model's versions, newest first; damaged ones are skipped."""
        manifests = []
        for folder in self._folder(model).glob("*"):
            if folder.is_dir() and ID_PATTERN.fullmatch(folder.name):
                try:
                    manifests.append(read_manifest(folder))
                except ArtifactError:
                    continue
        return sorted(manifests, key=lambda manifest: manifest.id, reverse=True)

    def active_id(self, model: str) -> str | None:
        """Read the id of the active version; None where none was activated."""
        try:
            return (self._folder(model) / "active").read_text("ascii").strip() or None
        except FileNotFoundError:
            return None

    def active(
        self, model: str, model_sha256: str, weights_sha256: str = ""
    ) -> StoredCalibrator | None:
        """Load the active version; None where none is active or it fits no model of this hash.

        A replaced model file, a changed card or a damaged artefact must not stop the service: its
        answers are then uncalibrated.
        """
        version = self.active_id(model)
        if version is None:
            return None
        try:
            return self.load(model, version, model_sha256, weights_sha256)
        except (ArtifactError, ConflictError, NotFoundError) as error:
            if version not in self._unusable:
                log.error("the active calibrator of %s can't be used: %s", model, error)  # noqa: TRY400
                self._unusable.add(version)
            return None

    def load(
        self, model: str, version: str, model_sha256: str, weights_sha256: str = ""
    ) -> StoredCalibrator:
        """Load one version for a model of this hash; loaded versions are cached.

        Raises NotFoundError, ConflictError for a calibrator of another model, and ArtifactError
        for damaged files. With the hash of the model's weights, the message of a ConflictError says
        whether the weights or the card differ.
        """
        folder = self._version_folder(model, version)
        stored = self._loaded.get(version)
        if stored is None:
            stored = self._loaded[version] = read_version(folder)
        if stored.manifest.model_sha256 != model_sha256:
            raise ConflictError(
                f"expected a calibrator of the model with hash {model_sha256[:12]}, "
                f"got one fitted for {stored.manifest.model_sha256[:12]}"
                f"{describe_difference(stored.manifest, weights_sha256)}"
            )
        return stored

    def find(self, version: str) -> Manifest:
        """Read the manifest of a version of any model; raises NotFoundError, ArtifactError."""
        if ID_PATTERN.fullmatch(version):
            for folder in self._root.glob(f"*/{version}"):
                return read_manifest(folder)
        raise NotFoundError(f"expected the id of a calibrator, got {version[:80]!r}")

    def report(self, model: str, version: str) -> dict[str, object]:
        """Read a version's report."""
        path = self._version_folder(model, version) / "report.json"
        return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]

    def publish(
        self,
        manifest: Manifest,
        calibrator: Calibrator,
        report: dict[str, object],
        reference: Reference | None = None,
    ) -> None:
        """Store a new version atomically; raises StorageError."""
        folder = self._folder(manifest.model)
        staging = folder / f".{manifest.id}.tmp"
        with storage("a calibrator"):
            folder.mkdir(parents=True, exist_ok=True)
            with self._changing(manifest.model):
                staging.mkdir()
                try:
                    write_version(staging, manifest, calibrator, report, reference)
                    staging.rename(folder / manifest.id)
                    sync_folder(folder)
                except BaseException:
                    shutil.rmtree(staging, ignore_errors=True)
                    raise

    def archive(self, model: str, version: str) -> bytes:
        """Pack a version's files into a zip archive."""
        folder = self._version_folder(model, version)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in (*FILES, *([REFERENCE] if (folder / REFERENCE).exists() else [])):
                archive.write(folder / name, f"{version}/{name}")
        return buffer.getvalue()

    def delete(self, model: str, version: str) -> None:
        """Delete a version atomically; raises ConflictError for the active one."""
        self._version_folder(model, version)
        with storage("a calibrator"), self._changing(model):
            folder = self._version_folder(model, version)
            if version == self.active_id(model):
                raise ConflictError(f"expected a calibrator that is not active, got {version}")
            renamed = folder.with_name(f".{version}.deleted")
            folder.rename(renamed)
            sync_folder(folder.parent)
            self._loaded.pop(version, None)
            shutil.rmtree(renamed, ignore_errors=True)

    def activate(self, model: str, version: str, reason: str, by: str) -> None:
        """Set a model's active version atomically, and append it to the history."""
        self._version_folder(model, version)
        with storage("a calibrator"), self._changing(model) as history:
            folder = self._version_folder(model, version).parent
            # History first: no version may become active without an entry.
            length = history.append(timestamp(), version, by, reason)
            try:
                replace_file(folder / "active", f"{version}\n".encode("ascii"))
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
            except OSError as error:  # for example a read-only folder
                log.warning("temporary files of %s can't be removed: %s", folder.name, error)

    @contextmanager
    def _changing(self, model: str) -> Iterator[History]:
        """Hold the lock of a model's folder; first remove what an interrupted change left there."""
        folder = self._folder(model)
        history = History(folder / "history.jsonl")
        with locked(folder / ".lock"):
            for path in (path for pattern in LEFTOVERS for path in folder.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            active = self.active_id(model)
            if active is not None and history.last() != active:
                history.append(timestamp(), active, "recovery", "found active after a crash")
            yield history

    def _folder(self, model: str) -> Path:
        return self._root / model

    def _version_folder(self, model: str, version: str) -> Path:
        """Return a version's folder; raises NotFoundError, ConflictError for another model's."""
        folder = self._folder(model) / version
        if ID_PATTERN.fullmatch(version):
            if folder.is_dir():
                return folder
            for other in self._root.glob(f"*/{version}"):
                raise ConflictError(
                    f"expected a calibrator of {model}, got one of {other.parent.name}"
                )
        raise NotFoundError(f"expected the id of a calibrator of {model}, got {version[:80]!r}")


def describe_difference(manifest: Manifest, weights_sha256: str) -> str:
    """Return the clause that says what differs from the model of a version; empty if unknown."""
    if not weights_sha256:
        return ""
    if manifest.weights_sha256 == weights_sha256:
        return ": the weights are the same, but the card's [input] or [output] table was changed"
    if manifest.weights_sha256:
        return ": the weights differ"
    if manifest.model_sha256 == weights_sha256:
        return (
            ": the weights are the same, but an earlier release fitted it, which did not record "
            "the card's tables; fit it again"
        )
    return ""
