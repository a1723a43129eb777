"""Versions of calibrators: immutable files, a pointer to the active one, and its history.

`ArtifactStore` is what the service uses; a `Backend` stores the files, in a folder
(`folder_backend`) or in a bucket of an object store (`object_backend`). An id is matched against
`ID_PATTERN` before a backend sees it. Damage, of any file, is reported for the model and the
version that it concerns.
"""

import io
import logging
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

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
from app.storage.backend import ID_PATTERN, Backend, Lease
from app.storage.folder_backend import FolderBackend
from app.storage.manifest import (
    MANIFEST,
    StoredCalibrator,
    VersionFiles,
    check_version,
    encode_version,
    file_names,
    read_file,
    read_manifest,
    read_report,
    read_version,
)
from app.storage.object_backend import ObjectBackend

log = logging.getLogger(__name__)


def open_backend(root: Path | str) -> Backend:
    """Open a folder, or the bucket of a URL; raises SettingsError (see `ObjectBackend.open`)."""
    if isinstance(root, str) and "://" in root:
        return ObjectBackend.open(root)
    return FolderBackend(Path(root))


class ArtifactStore:
    """All versions of all models, which any number of processes may share."""

    def __init__(self, root: Path | str | Backend) -> None:
        self._backend = open_backend(root) if isinstance(root, Path | str) else root
        self._loaded: dict[tuple[str, str], StoredCalibrator] = {}
        self._logged: set[str] = set()  # messages, logged once each

    def check(self) -> None:
        """Raise SettingsError where the storage can't keep changes apart (see `Backend`)."""
        self._backend.check()

    def versions(self, model: str) -> list[Manifest]:
        """List a model's versions, newest first, without the damaged ones."""
        return self.scan(model)[0]

    def scan(self, model: str) -> tuple[list[Manifest], dict[str, str]]:
        """Verify a model's versions; return the whole ones, newest first, and damage by id."""
        whole: list[Manifest] = []
        damaged: dict[str, str] = {}
        for version in self._backend.ids(model):
            try:
                whole.append(check_version(self._files(model, version)))
            except ArtifactError as error:
                damaged[version] = str(error)
            except NotFoundError:  # deleted meanwhile
                continue
        return whole, damaged

    def active_id(self, model: str) -> str | None:
        """Read the id of the active version; None where none was activated.

        Raises ArtifactError for a damaged pointer.
        """
        return self._backend.active_id(model)

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
            if self._backend.files(model, version) is None:  # a ConflictError for another model's
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
        files = self._files(model, version)
        stored = self._loaded.get((model, version))
        if stored is None:
            stored = self._loaded[model, version] = read_version(files)
        if stored.manifest.model_sha256 != model_sha256:
            raise ConflictError(
                f"expected a calibrator of the model with hash {model_sha256[:12]}, "
                f"got one fitted for {stored.manifest.model_sha256[:12]}"
                f"{describe_difference(stored.manifest, weights_sha256)}"
            )
        return stored

    def model_of(self, version: str) -> str:
        """Return the model of a version, which may be damaged; raises NotFoundError."""
        model = self._backend.model_of(version) if ID_PATTERN.fullmatch(version) else None
        if model is None:
            raise NotFoundError(f"expected the id of a calibrator, got {version[:80]!r}")
        return model

    def find(self, version: str) -> Manifest:
        """Read the manifest of a version of any model; raises NotFoundError, ArtifactError."""
        return read_manifest(self._files(self.model_of(version), version))

    def report(self, model: str, version: str) -> dict[str, object]:
        """Read and verify a version's report; raises NotFoundError, ArtifactError."""
        files = self._files(model, version)
        return read_report(files, read_manifest(files))

    def publish(
        self,
        manifest: Manifest,
        calibrator: Calibrator,
        report: dict[str, object],
        reference: Reference | None = None,
        lease: Lease | None = None,
    ) -> Manifest:
        """Store a new version atomically; return its manifest with its id.

        The manifest's id comes from `new_id`. Equal files of the same second are one version.
        Raises StorageError, and ConflictError where the fit has lost its lease.
        """
        manifest, contents = encode_version(manifest, calibrator, report, reference)
        self._backend.add(manifest, contents, lease)
        return manifest

    def archive(self, model: str, version: str) -> bytes:
        """Pack a version's files, verified, into a zip; raises NotFoundError, ArtifactError."""
        files = self._files(model, version)
        manifest = read_manifest(files)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{version}/{MANIFEST}", files.read(MANIFEST))
            for name in file_names(files, manifest):
                archive.writestr(f"{version}/{name}", read_file(files, manifest, name))
        return buffer.getvalue()

    def delete(self, model: str, version: str) -> None:
        """Delete a version atomically, which may be damaged.

        Raises ConflictError for the active one, and ArtifactError where the damaged pointer hides
        which one is active.
        """
        self._files(model, version)
        self._backend.delete(model, version)
        self._loaded.pop((model, version), None)

    def activate(
        self, model: str, version: str, reason: str, by: str, lease: Lease | None = None
    ) -> None:
        """Set a model's active version atomically, and append it to the history.

        Raises ArtifactError for a damaged version, and ConflictError where the fit has lost its
        lease. A damaged pointer is replaced.
        """
        self._files(model, version)
        self._backend.activate(model, version, reason, by, lease)

    def lease(self, model: str, by: str) -> AbstractContextManager[Lease]:
        """Hold the lease of a model's fit; raises ConflictError while another fit holds it."""
        return self._backend.lease(model, by)

    def recover(self) -> None:
        """Complete or remove what interrupted changes left, of all models."""
        self._backend.recover()

    def _last_used_first(self, model: str) -> Iterator[str]:
        """Yield the ids of the activated versions, latest activation first, then of all others."""
        yield from self._backend.activated(model)
        yield from (manifest.id for manifest in self.versions(model))

    def _replaced(self, model: str, version: str | None) -> bool:
        """Return whether another version than `version` is active by now."""
        try:
            return version is not None and self._backend.active_id(model, latest=True) != version
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

    def _files(self, model: str, version: str) -> VersionFiles:
        """Return a version's files; raises NotFoundError, ConflictError for another model's."""
        if ID_PATTERN.fullmatch(version):
            files = self._backend.files(model, version)
            if files is not None:
                return files
            other = self._backend.model_of(version)
            if other is not None:
                raise ConflictError(f"expected a calibrator of {model}, got one of {other}")
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
