"""Files of one calibrator version: writing, reading and validation.

The manifest holds the SHA-256 of every other file. The last part of the version's id is the
beginning of the manifest's own SHA-256, computed without the line of the id. Versions of earlier
releases, whose ids end in 6 digits, have no checksums.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import safetensors.torch
import torch
from pydantic import ValidationError

from app.calibration.base import Calibrator
from app.calibration.drift import CONFIDENCE_BINS, Reference
from app.calibration.registry import build
from app.errors import ArgumentError, ArtifactError, ConflictError
from app.schemas.calibrator import FORMAT, FORMAT_VERSION, Manifest

MANIFEST, CALIBRATOR, REPORT = "manifest.json", "calibrator.safetensors", "report.json"
REFERENCE = "reference.safetensors"  # optional: histograms that drift is measured against
DIGEST_DIGITS = 12  # of the manifest's SHA-256 in an id


class VersionFiles(Protocol):
    """The stored files of one version."""

    @property
    def id(self) -> str:
        """Return the version's id."""

    def read(self, name: str) -> bytes:
        """Read a file unverified; raises ArtifactError, NotFoundError without the version."""

    def has(self, name: str) -> bool:
        """Return whether the version has a file."""


@dataclass(frozen=True)
class StoredCalibrator:
    """A loaded and validated version; without a reference its drift can't be measured."""

    manifest: Manifest
    calibrator: Calibrator
    reference: Reference | None = None


def new_id(method: str) -> str:
    """Return the id of a new version without its last part, which `encode_version` appends.

    Ids sort by time and need no escaping in a URL's query.
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{method.replace('+', '_on_')}"


def timestamp() -> str:
    """Return the current time in UTC as RFC 3339, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def encode_version(
    manifest: Manifest,
    calibrator: Calibrator,
    report: dict[str, object],
    reference: Reference | None,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return a version's manifest with checksums and id, and its files, the manifest last.

    Raises ArgumentError for parameters that are not finite: they could not be read back.
    """
    broken = [
        name for name, tensor in calibrator.state_dict().items() if not tensor.isfinite().all()
    ]
    if broken:
        raise ArgumentError(f"expected finite parameters from the fit, got others in {broken}")
    tensors = {name: tensor.contiguous() for name, tensor in calibrator.state_dict().items()}
    contents = {CALIBRATOR: safetensors.torch.save(tensors), REPORT: _json(report)}
    if reference is not None:
        contents[REFERENCE] = safetensors.torch.save({"images": reference.images.contiguous()})
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = manifest.model_copy(update={"files": files})
    digest = _digest(_json(manifest.model_dump()), manifest.id)
    manifest = manifest.model_copy(update={"id": f"{manifest.id}-{digest}"})
    return manifest, {**contents, MANIFEST: _json(manifest.model_dump())}


def read_version(files: VersionFiles) -> StoredCalibrator:
    """Read and verify all files of a version.

    Raises ArtifactError for damaged files, ConflictError for parameters of an earlier release and
    NotFoundError where the version was deleted meanwhile.
    """
    manifest = check_version(files)
    return StoredCalibrator(
        manifest, _read_calibrator(files, manifest), _read_reference(files, manifest)
    )


def check_version(files: VersionFiles) -> Manifest:
    """Verify the checksums of all files and the report's JSON; return the manifest.

    Raises ArtifactError, NotFoundError.
    """
    manifest = read_manifest(files)
    for name in file_names(files, manifest):
        read_file(files, manifest, name)
    read_report(files, manifest)
    return manifest


def file_names(files: VersionFiles, manifest: Manifest) -> list[str]:
    """List the names of a version's files besides the manifest."""
    if _has_checksums(manifest.id):
        return list(manifest.files)
    return [CALIBRATOR, REPORT, *([REFERENCE] if files.has(REFERENCE) else [])]


def read_manifest(files: VersionFiles) -> Manifest:
    """Read and validate a version's manifest; raises ArtifactError, NotFoundError."""
    data = files.read(MANIFEST)
    expected = files.id.rpartition("-")[2]
    if _has_checksums(files.id) and (got := _digest(data, files.id)) != expected:
        raise ArtifactError(
            f"{files.id}: expected a manifest with the checksum {expected}, got {got}"
        )
    _check_format(data, files.id)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(
            f"{files.id}: expected a manifest, got an error at "
            f"{'.'.join(map(str, first['loc'])) or 'its start'}: {first['msg']}"
        ) from error
    if manifest.id != files.id:
        raise ArtifactError(f"{files.id}: expected its own id, got {manifest.id}")
    return manifest


def _check_format(data: bytes, version: str) -> None:
    """Raise ArtifactError for a manifest of another format, whose other fields may differ.

    One that can't be read is left to the validation of the fields.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    found = document.get("format", FORMAT), document.get("format_version", FORMAT_VERSION)
    if found == (FORMAT, FORMAT_VERSION):
        return
    later = found[0] == FORMAT and isinstance(found[1], int) and found[1] > FORMAT_VERSION
    hint = ", of a later release: upgrade the service, or use another calibrator" if later else ""
    raise ArtifactError(
        f"{version}: expected {FORMAT} version {FORMAT_VERSION}, "
        f"got {str(found[0])[:40]} version {str(found[1])[:40]}{hint}"
    )


def read_file(files: VersionFiles, manifest: Manifest, name: str) -> bytes:
    """Read and verify one file of a version; raises ArtifactError, NotFoundError."""
    data = files.read(name)
    if not _has_checksums(manifest.id):
        return data
    got = hashlib.sha256(data).hexdigest()
    if got != manifest.files.get(name):
        raise ArtifactError(
            f"{files.id}: expected {name} with the checksum of its manifest, got {got[:12]}"
        )
    return data


def read_report(files: VersionFiles, manifest: Manifest) -> dict[str, object]:
    """Read and verify a version's report; raises ArtifactError, NotFoundError."""
    data = read_file(files, manifest, REPORT)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{files.id}: expected a report in JSON, got other data") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{files.id}: expected a report, got {type(document).__name__}")
    return document


def _has_checksums(version: str) -> bool:
    return len(version.rpartition("-")[2]) == DIGEST_DIGITS


def _digest(data: bytes, version: str) -> str:
    """Compute the last part of an id from a manifest's bytes, without the line of the id."""
    line = f'  "id": "{version}",\n'.encode()
    return hashlib.sha256(data.replace(line, b"", 1)).hexdigest()[:DIGEST_DIGITS]


def _read_calibrator(files: VersionFiles, manifest: Manifest) -> Calibrator:
    state = _read_tensors(files, manifest, CALIBRATOR)
    try:
        calibrator = build(manifest.method, manifest.num_classes)
    except ArgumentError as error:
        raise ArtifactError(
            f"{files.id}: {error}; a method of a later release needs that release"
        ) from error
    if set(state) != set(calibrator.state_dict()):
        raise ConflictError(
            f"expected the parameters that the method {manifest.method} has now, got those of "
            f"an earlier form of it in {files.id}: fit it again"
        )
    try:
        calibrator.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{files.id}: expected a calibrator's state, got: {error}") from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ArtifactError(f"{files.id}: expected finite parameters, got NaN or infinity")
    return calibrator.eval()


def _read_reference(files: VersionFiles, manifest: Manifest) -> Reference | None:
    """Read the histograms that drift is measured against; None where a version has none."""
    if REFERENCE not in file_names(files, manifest):
        return None
    images = _read_tensors(files, manifest, REFERENCE).get("images")
    bins = CONFIDENCE_BINS + manifest.num_classes
    if images is None:
        raise ArtifactError(f"{files.id}: expected a reference with images, got none")
    if images.ndim != 2 or images.shape[1] != bins or not torch.isfinite(images).all():
        raise ArtifactError(
            f"{files.id}: expected finite histograms [n,{bins}], got {list(images.shape)}"
        )
    return Reference(images)


def _read_tensors(files: VersionFiles, manifest: Manifest, name: str) -> dict[str, torch.Tensor]:
    data = read_file(files, manifest, name)
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # of an earlier release; damage makes it raise many types
        raise ArtifactError(f"{files.id}: expected tensors in {name}, got: {error}") from error


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")
