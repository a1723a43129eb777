"""Manifest of a calibrator version, as stored and as sent."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

FORMAT = "segcal-calibrator"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CertifiedThreshold:
    """Among pixels with confidence >= `threshold` at most a fraction `max_error` is wrong.

    This holds with probability 1 - `delta` over the draw of the images. `coverage` (mean fraction
    of accepted pixels) and `error` are measured on the certification images, images weighing
    equally; neither is a bound.
    """

    max_error: float
    threshold: float
    delta: float
    coverage: float
    error: float
    images: int


class Manifest(BaseModel):
    """Identity, model and held-out quality of a stored calibrator.

    ECE is image-wise with 10 bins, on images held out from the fit. `options` are those given for
    the method. `files` holds the SHA-256 of each other file by name; it is empty in versions of
    earlier releases, as is `weights_sha256`, whose `model_sha256` is that of the model's file
    alone. Fields that a newer version of the service has added are ignored when a manifest is read.
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
    options: dict[str, str | float] = {}
    weights_sha256: str = ""
    summary: dict[str, float] = {}
    thresholds: tuple[CertifiedThreshold, ...] = ()  # by rising max_error
    files: dict[str, str] = {}
    format: str = FORMAT
    format_version: int = FORMAT_VERSION
