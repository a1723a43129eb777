"""Calibrators on disk: immutable versions, one atomic pointer to the active one, and its history.

    <root>/<model>/<id>/manifest.json, calibrator.safetensors, report.json, reference.safetensors
    <root>/<model>/active            the active version's id
    <root>/<model>/history.jsonl     who activated what, when and why
    <root>/<model>/.lock             held by whoever changes any of these

A version is written beside its place, synced, and renamed; `active` is replaced the same way. A
crash at any instant leaves the old state or the new one, and what it leaves half-done goes with
the next change or start. Readers need no lock. Ids and model names that come from outside are
looked up among what is there, never joined to a path.
"""

import io
import json
import logging
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from app.calibration.base import Calibrator
from app.calibration.certification import CertifiedThreshold
from app.calibration.drift import CONFIDENCE_BINS, Reference
from app.calibration.registry import build
from app.disk import locked, replace_file, storage, sync_folder, write_synced
from app.errors import (
    ArgumentError,
    ArtifactError,
    ConflictError,
    NotFoundError,
)
from app.history import History

log = logging.getLogger(__name__)

FORMAT = "segcal-calibrator"
FORMAT_VERSION = 1
FILES = ("manifest.json", "calibrator.safetensors", "report.json")
LEFTOVERS = (".*.tmp", ".*.deleted")  # of a change that a crash has cut short
REFERENCE = "reference.safetensors"  # how answers looked at the fit; not every version has one
ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9_+]+-[0-9a-f]{6}")


@dataclass(frozen=True)
class Manifest:
    """What a stored calibrator is, what it was fitted for, and how good it was measured to be.

    ECE is image-wise with 10 bins, on images held out from the fit.
    """

    id: str
    model: str
    model_sha256: str
    method: str
    num_classes: int
    fitted_at: str
    images: int
    pixels: int
    ece_before: float
    ece_after: float
    seed: int = 0
    note: str = ""
    summary: dict[str, float] = field(default_factory=dict)
    thresholds: tuple[CertifiedThreshold, ...] = ()  # by rising max_error; older ones have none
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class StoredCalibrator:
    """A version that was loaded and checked; without a reference there is no telling of drift."""

    manifest: Manifest
    calibrator: Calibrator
    reference: Reference | None = None


def new_id(method: str) -> str:
    """Make a version id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{method}-{secrets.token_hex(3)}"


class ArtifactStore:
    """All versions of all models below one folder; any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loaded: dict[str, StoredCalibrator] = {}
        self._unusable: set[str] = set()  # complained of once each

    def versions(self, model: str) -> list[Manifest]:
        """List a model's versions, newest first; damaged ones are left out."""
        found = []
        for folder in self._folder(model).glob("*"):
            if folder.is_dir() and ID_PATTERN.fullmatch(folder.name):
                try:
                    found.append(_read_manifest(folder))
                except ArtifactError:
                    continue
        return sorted(found, key=lambda manifest: manifest.id, reverse=True)

    def active_id(self, model: str) -> str | None:
        """Read the pointer; None where nothing was ever activated."""
        try:
            return (self._folder(model) / "active").read_text("ascii").strip() or None
        except FileNotFoundError:
            return None

    def active(self, model: str, model_sha256: str) -> StoredCalibrator | None:
        """Load the active version; None where there is none that a model of this hash can use.

        A replaced model file or a damaged artefact must not take the service down: answers then
        say that they are uncalibrated.
        """
        version = self.active_id(model)
        if version is None:
            return None
        try:
            return self.load(model, version, model_sha256)
        except (ArtifactError, ConflictError, NotFoundError) as error:
            if version not in self._unusable:
                log.error("the active calibrator of %s can't be used: %s", model, error)  # noqa: TRY400
                self._unusable.add(version)
            return None

    def load(self, model: str, version: str, model_sha256: str) -> StoredCalibrator:
        """Load one version for a model of this hash; loaded versions are remembered.

        Raises NotFoundError, ConflictError for a calibrator of another model's logits, and
        ArtifactError for damage.
        """
        folder = self._version_folder(model, version)
        stored = self._loaded.get(version)
        if stored is None:
            manifest = _read_manifest(folder)
            stored = StoredCalibrator(
                manifest, _read(folder, manifest), _read_reference(folder, manifest)
            )
            self._loaded[version] = stored
        if stored.manifest.model_sha256 != model_sha256:
            raise ConflictError(
                f"expected a calibrator of the model with hash {model_sha256[:12]}, "
                f"got one fitted for {stored.manifest.model_sha256[:12]}"
            )
        return stored

    def find(self, version: str) -> Manifest:
        """Find a version of whatever model; raises NotFoundError, or ArtifactError for damage."""
        if ID_PATTERN.fullmatch(version):
            for folder in self._root.glob(f"*/{version}"):
                return _read_manifest(folder)
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
        """Store a new version; it is there whole or not at all."""
        folder = self._folder(manifest.model)
        staging = folder / f".{manifest.id}.tmp"
        with storage("a calibrator"):
            folder.mkdir(parents=True, exist_ok=True)
            with self._changing(manifest.model):
                staging.mkdir()
                try:
                    _write(staging, manifest, calibrator, report, reference)
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
        """Remove a version in one step; raises ConflictError for the active one."""
        self._version_folder(model, version)
        with storage("a calibrator"), self._changing(model):
            folder = self._version_folder(model, version)
            if version == self.active_id(model):
                raise ConflictError(f"expected a calibrator that is not active, got {version}")
            doomed = folder.with_name(f".{version}.deleted")
            folder.rename(doomed)
            sync_folder(folder.parent)
            self._loaded.pop(version, None)
            shutil.rmtree(doomed, ignore_errors=True)

    def activate(self, model: str, version: str, reason: str, by: str) -> None:
        """Point a model at a version, in one atomic step, and note it in the history."""
        self._version_folder(model, version)
        with storage("a calibrator"), self._changing(model) as history:
            folder = self._version_folder(model, version).parent
            # The note comes first: if it can't be kept, nothing is switched without one.
            length = history.append(timestamp(), version, by, reason)
            try:
                replace_file(folder / "active", f"{version}\n".encode("ascii"))
            except BaseException:
                history.withdraw(length)
                raise
            sync_folder(folder)

    def recover(self) -> None:
        """Clear away what changes that were cut short have left behind, of every model."""
        for folder in self._root.glob("[!.]*/"):
            try:
                with self._changing(folder.name):
                    pass
            except OSError as error:  # such as a folder that is only to be read
                log.warning("the calibrators of %s can't be cleared up: %s", folder.name, error)

    @contextmanager
    def _changing(self, model: str) -> Iterator[History]:
        """Hold the lock of a model's folder, having cleared away what a crash left there."""
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
        """Find a version's folder; the id must have our form before it meets a path."""
        folder = self._folder(model) / version
        if ID_PATTERN.fullmatch(version):
            if folder.is_dir():
                return folder
            for other in self._root.glob(f"*/{version}"):
                raise ConflictError(
                    f"expected a calibrator of {model}, got one of {other.parent.name}"
                )
        raise NotFoundError(f"expected the id of a calibrator of {model}, got {version[:80]!r}")


def timestamp() -> str:
    """Give the time now as RFC 3339, to the second, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _write(
    folder: Path,
    manifest: Manifest,
    calibrator: Calibrator,
    report: dict[str, object],
    reference: Reference | None,
) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in calibrator.state_dict().items()}
    write_synced(folder / "calibrator.safetensors", safetensors.torch.save(tensors))
    if reference is not None:
        images = {"images": reference.images.contiguous()}
        write_synced(folder / REFERENCE, safetensors.torch.save(images))
    write_synced(folder / "report.json", _json(report))
    write_synced(folder / "manifest.json", _json(asdict(manifest)))
    sync_folder(folder)


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = TypeAdapter(Manifest).validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder.name}: expected a manifest, got: {error}") from error
    if (manifest.format, manifest.format_version) != (FORMAT, FORMAT_VERSION):
        raise ArtifactError(
            f"{folder.name}: expected {FORMAT} version {FORMAT_VERSION}, "
            f"got {manifest.format} version {manifest.format_version}"
        )
    if manifest.id != folder.name:
        raise ArtifactError(f"{folder.name}: expected its own id inside, got {manifest.id}")
    return manifest


def _read(folder: Path, manifest: Manifest) -> Calibrator:
    try:
        calibrator = build(manifest.method, manifest.num_classes)
        state = safetensors.torch.load_file(folder / "calibrator.safetensors")
        calibrator.load_state_dict(state)
    except (ArgumentError, OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"{folder.name}: expected a calibrator's state, got: {error}"
        ) from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ArtifactError(f"{folder.name}: expected finite parameters, got NaN or infinity")
    return calibrator.eval()


def _read_reference(folder: Path, manifest: Manifest) -> Reference | None:
    """Read what drift is measured against; None where a version has none."""
    path = folder / REFERENCE
    if not path.exists():
        return None
    try:
        images = safetensors.torch.load_file(path)["images"]
    except (KeyError, OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{folder.name}: expected a reference, got: {error}") from error
    wanted = CONFIDENCE_BINS + manifest.num_classes
    if images.ndim != 2 or images.shape[1] != wanted or not torch.isfinite(images).all():
        raise ArtifactError(
            f"{folder.name}: expected finite histograms [n,{wanted}], got {list(images.shape)}"
        )
    return Reference(images)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")
