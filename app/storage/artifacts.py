"""Calibrators on disk: immutable versions, an atomic pointer to the active one, and its history.

    <root>/<model>/<id>/manifest.json, calibrator.safetensors, report.json, reference.safetensors
    <root>/<model>/active            the active version's id
    <root>/<model>/history.jsonl     time, version, author and reason of each activation
    <root>/<model>/.lock             held while any of these is changed

A version is written to a temporary folder, synced, and renamed; `active` is replaced the same way.
A crash at any instant leaves the old state or the new one; its temporary files are removed with the
next change or start. Readers need no lock. An id is matched against `ID_PATTERN` before it is
joined to a path. Damage, of any file, is reported for the model and the version that it concerns.
"""

import io
import json
import logging
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from app.calibration.base import Calibrator
from app.calibration.drift import Reference
from app.errors import (
    ActiveCalibratorError,
    ArtifactError,
    ConflictError,
    NotFoundError,
    SegcalError,
)
from app.schemas.calibrator import Manifest
from app.storage.files import locked, replace_file, storage, sync_folder
from app.storage.manifest import (
    MANIFEST,
    StoredCalibrator,
    check_version,
    file_names,
    read_bytes,
    read_file,
    read_manifest,
    read_report,
    read_version,
    timestamp,
    write_version,
)

log = logging.getLogger(__name__)

TAIL_BYTES = 64 << 10  # read to find the last line; a line has about 300 bytes
LEFTOVERS = (".*.tmp", ".*.deleted")  # temporary files of a change that a crash interrupted
# Older versions may have a plus, which a query must write as %2B, and end in 6 random digits.
ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9_+]+-(?:[0-9a-f]{6}|[0-9a-f]{12})")
POINTER = "active"
POINTER_BYTES = 200  # read of the pointer; an id has at most 60


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


class ArtifactStore:
    """All versions of all models in one folder, which any number of processes may share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loaded: dict[tuple[str, str], StoredCalibrator] = {}
        self._logged: set[str] = set()  # messages, logged once each

    def versions(self, model: str) -> list[Manifest]:
        """List a model's versions, newest first, without the damaged ones."""
        return self.scan(model)[0]

    def scan(self, model: str) -> tuple[list[Manifest], dict[str, str]]:
        """Verify a model's versions; return the whole ones, newest first, and damage by id."""
        whole: list[Manifest] = []
        damaged: dict[str, str] = {}
        for folder in sorted(self._folder(model).glob("*"), reverse=True):
            if folder.is_dir() and ID_PATTERN.fullmatch(folder.name):
                try:
                    whole.append(check_version(folder))
                except ArtifactError as error:
                    damaged[folder.name] = str(error)
                except NotFoundError:  # deleted meanwhile
                    continue
        return whole, damaged

    def active_id(self, model: str) -> str | None:
        """Read the id of the active version; None where none was activated.

        Raises ArtifactError for a damaged pointer.
        """
        try:
            with (self._folder(model) / POINTER).open("rb") as file:
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

    def is_active(self, manifest: Manifest) -> bool:
        """Return whether a version is its model's active one; false with a damaged pointer."""
        try:
            return self.active_id(manifest.model) == manifest.id
        except ArtifactError:
            return False

    def active(
        self, model: str, model_sha256: str, weights_sha256: str = ""
    ) -> StoredCalibrator | None:
        """Load the active version; None where none is active or it fits no model of this hash.

        A replaced model file or a changed card must not stop the service: its answers are then
        uncalibrated. Raises ActiveCalibratorError for a damaged version or pointer, with the last
        whole version in its message; that version is never used in place of the active one.
        """
        version = None
        try:
            version = self.active_id(model)
            if version is None:
                return None
            if not (self._folder(model) / version).is_dir():  # a ConflictError for another model's
                raise NotFoundError(f"expected the id of a calibrator of {model}, got {version}")  # noqa: TRY301
            return self.load(model, version, model_sha256, weights_sha256)
        except ConflictError as error:
            self._log_once(f"the active calibrator of {model} can't be used: {error}")
            return None
        except (ArtifactError, NotFoundError) as error:
            if self._replaced(model, version):  # and deleted, since the pointer was read
                return self.active(model, model_sha256, weights_sha256)
            message = (
                f"expected a whole active calibrator of {model}, got damage: {error}; "
                f"{self._repair(model, model_sha256)}"
            )
            self._log_once(message)
            raise ActiveCalibratorError(message) from error

    def load(
        self, model: str, version: str, model_sha256: str, weights_sha256: str = ""
    ) -> StoredCalibrator:
        """Load one version for a model of this hash, verified; loaded versions are cached.

        Raises NotFoundError, ConflictError for a calibrator of another model, and ArtifactError
        for damaged files. With the hash of the model's weights, the message of a ConflictError says
        whether the weights or the card differ.
        """
        folder = self._version_folder(model, version)
        stored = self._loaded.get((model, version))
        if stored is None:
            stored = self._loaded[model, version] = read_version(folder)
        if stored.manifest.model_sha256 != model_sha256:
            raise ConflictError(
                f"expected a calibrator of the model with hash {model_sha256[:12]}, "
                f"got one fitted for {stored.manifest.model_sha256[:12]}"
                f"{describe_difference(stored.manifest, weights_sha256)}"
            )
        return stored

    def model_of(self, version: str) -> str:
        """Return the model of a version, which may be damaged; raises NotFoundError."""
        if ID_PATTERN.fullmatch(version):
            for folder in self._root.glob(f"*/{version}"):
                return folder.parent.name
        raise NotFoundError(f"expected the id of a calibrator, got {version[:80]!r}")

    def find(self, version: str) -> Manifest:
        """Read the manifest of a version of any model; raises NotFoundError, ArtifactError."""
        return read_manifest(self._folder(self.model_of(version)) / version)

    def report(self, model: str, version: str) -> dict[str, object]:
        """Read and verify a version's report; raises NotFoundError, ArtifactError."""
        folder = self._version_folder(model, version)
        return read_report(folder, read_manifest(folder))

    def publish(
        self,
        manifest: Manifest,
        calibrator: Calibrator,
        report: dict[str, object],
        reference: Reference | None = None,
    ) -> Manifest:
        """Store a new version atomically; return its manifest with its id. Raises StorageError.

        The manifest's id comes from `new_id`. Equal files of the same second are one version.
        """
        folder = self._folder(manifest.model)
        staging = folder / f".{manifest.id}.tmp"
        with storage("a calibrator"):
            folder.mkdir(parents=True, exist_ok=True)
            with self._changing(manifest.model):
                staging.mkdir()
                try:
                    manifest = write_version(staging, manifest, calibrator, report, reference)
                    if (folder / manifest.id).exists():
                        shutil.rmtree(staging)
                    else:
                        staging.rename(folder / manifest.id)
                        sync_folder(folder)
                except BaseException:
                    shutil.rmtree(staging, ignore_errors=True)
                    raise
        return manifest

    def archive(self, model: str, version: str) -> bytes:
        """Pack a version's files, verified, into a zip; raises NotFoundError, ArtifactError."""
        folder = self._version_folder(model, version)
        manifest = read_manifest(folder)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{version}/{MANIFEST}", read_bytes(folder, MANIFEST))
            for name in file_names(folder, manifest):
                archive.writestr(f"{version}/{name}", read_file(folder, manifest, name))
        return buffer.getvalue()

    def delete(self, model: str, version: str) -> None:
        """Delete a version atomically, which may be damaged.

        Raises ConflictError for the active one, and ArtifactError where the damaged pointer hides
        which one is active.
        """
        self._version_folder(model, version)
        with storage("a calibrator"), self._changing(model):
            folder = self._version_folder(model, version)
            if version == self.active_id(model):
                raise ConflictError(f"expected a calibrator that is not active, got {version}")
            renamed = folder.with_name(f".{version}.deleted")
            folder.rename(renamed)
            sync_folder(folder.parent)
            self._loaded.pop((model, version), None)
            shutil.rmtree(renamed, ignore_errors=True)

    def activate(self, model: str, version: str, reason: str, by: str) -> None:
        """Set a model's active version atomically, and append it to the history.

        Raises ArtifactError for a damaged version. A damaged pointer is replaced.
        """
        self._version_folder(model, version)
        with storage("a calibrator"), self._changing(model) as history:
            folder = self._version_folder(model, version).parent
            check_version(folder / version)
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
            with suppress(ArtifactError):  # a damaged pointer is reported when it is used
                active = self.active_id(model)
                if active is not None and history.last() != active:
                    history.append(timestamp(), active, "recovery", "found active after a crash")
            yield history

    def _last_used_first(self, model: str) -> Iterator[str]:
        """Yield the ids of the activated versions, latest activation first, then of all others."""
        yield from History(self._folder(model) / "history.jsonl").newest_first()
        yield from (manifest.id for manifest in self.versions(model))

    def _replaced(self, model: str, version: str | None) -> bool:
        """Return whether another version than `version` is active by now."""
        try:
            return version is not None and self.active_id(model) != version
        except ArtifactError:
            return False

    def _log_once(self, message: str) -> None:
        if message not in self._logged:
            log.error(message)
            self._logged.add(message)

    def _repair(self, model: str, model_sha256: str) -> str:
        """Return the sentence that names the last whole version and the ways to use it."""
        for version in self._last_used_first(model):
            try:
                self.load(model, version, model_sha256)
            except SegcalError:
                continue
            return (
                f"the last whole one is {version}: activate it by `segcal calibrators activate "
                f"{version} --model {model}` or POST /calibrators/{version}/activate, or name it, "
                f"or none, as the request's calibrator"
            )
        return "no other one can be read: fit one, or name none as the request's calibrator"

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
