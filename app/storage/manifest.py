"""Files of one calibrator version: the manifest's schema, writing, reading and validation."""

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from app.calibration.base import Calibrator
from app.calibration.drift import CONFIDENCE_BINS, Reference
from app.calibration.registry import build
from app.calibration.risk_control import CertifiedThreshold
from app.errors import ArgumentError, ArtifactError, ConflictError
from app.storage.files import sync_folder, write_synced

FORMAT = "segcal-calibrator"
FORMAT_VERSION = 1
FILES = ("manifest.json", "calibrator.safetensors", "report.json")
REFERENCE = "reference.safetensors"  # optional: histograms that drift is measured against


class Manifest(BaseModel):
    """Identity, model and held-out quality of a stored calibrator.

    ECE is image-wise with 10 bins, on images held out from the fit. Fields that a newer version
    of the service has added are ignored when a manifest is read. `weights_sha256` is empty in
    manifests of earlier releases, whose `model_sha256` is the hash of the model's file alone.
    """

    model_config = ConfigDict(frozen=True)

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
    weights_sha256: str = ""
    summary: dict[str, float] = {}
    thresholds: tuple[CertifiedThreshold, ...] = ()  # by rising max_error
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class StoredCalibrator:
    """A loaded and validated version; without a reference its drift can't be measured."""

    manifest: Manifest
    calibrator: Calibrator
    reference: Reference | None = None


def new_id(method: str) -> str:
    """Return a new version id that sorts by time and needs no escaping in a URL's query."""
    named = method.replace("+", "_on_")
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{named}-{secrets.token_hex(3)}"


def timestamp() -> str:
    """Return the current time in UTC as RFC 3339, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def write_version(
    folder: Path,
    manifest: Manifest,
    calibrator: Calibrator,
    report: dict[str, object],
    reference: Reference | None,
) -> None:
    """Write a version's files into an empty folder; the manifest comes last.

    Raises ArgumentError for parameters that are not finite: they could not be read back.
    """
    broken = [
        name for name, tensor in calibrator.state_dict().items() if not tensor.isfinite().all()
    ]
    if broken:
        raise ArgumentError(f"expected finite parameters from the fit, got others in {broken}")
    tensors = {name: tensor.contiguous() for name, tensor in calibrator.state_dict().items()}
    write_synced(folder / "calibrator.safetensors", safetensors.torch.save(tensors))
    if reference is not None:
        images = {"images": reference.images.contiguous()}
        write_synced(folder / REFERENCE, safetensors.torch.save(images))
    write_synced(folder / "report.json", _json(report))
    write_synced(folder / "manifest.json", _json(manifest.model_dump()))
    sync_folder(folder)


def read_version(folder: Path) -> StoredCalibrator:
    """Read all files of a version.

    Raises ArtifactError for damaged files, ConflictError for parameters of an earlier release.
    """
    manifest = read_manifest(folder)
    return StoredCalibrator(
        manifest, _read_calibrator(folder, manifest), _read_reference(folder, manifest)
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a version's manifest; raises ArtifactError."""
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder.name}: expected a manifest, got: {error}") from error
    if (manifest.format, manifest.format_version) != (FORMAT, FORMAT_VERSION):
        raise ArtifactError(
            f"{folder.name}: expected {FORMAT} version {FORMAT_VERSION}, "
            f"got {manifest.format} version {manifest.format_version}"
        )
    if manifest.id != folder.name:
        raise ArtifactError(f"{folder.name}: expected its folder's name as id, got {manifest.id}")
    return manifest


def _read_calibrator(folder: Path, manifest: Manifest) -> Calibrator:
    try:
        calibrator = build(manifest.method, manifest.num_classes)
        state = safetensors.torch.load_file(folder / "calibrator.safetensors")
        if set(state) != set(calibrator.state_dict()):
            raise ConflictError(
                f"expected the parameters that the method {manifest.method} has now, got those of "
                f"an earlier form of it in {folder.name}: fit it again"
            )
        calibrator.load_state_dict(state)
    except (ArgumentError, OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"{folder.name}: expected a calibrator's state, got: {error}"
        ) from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ArtifactError(f"{folder.name}: expected finite parameters, got NaN or infinity")
    return calibrator.eval()


def _read_reference(folder: Path, manifest: Manifest) -> Reference | None:
    """Read the histograms that drift is measured against; None where a version has none."""
    path = folder / REFERENCE
    if not path.exists():
        return None
    try:
        images = safetensors.torch.load_file(path)["images"]
    except (KeyError, OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{folder.name}: expected a reference, got: {error}") from error
    bins = CONFIDENCE_BINS + manifest.num_classes
    if images.ndim != 2 or images.shape[1] != bins or not torch.isfinite(images).all():
        raise ArtifactError(
            f"{folder.name}: expected finite histograms [n,{bins}], got {list(images.shape)}"
        )
    return Reference(images)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")
