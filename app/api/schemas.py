"""The bodies and queries of the contract, as types."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

OPTIONAL_PARTS = frozenset({"mask", "confidence", "rle"})
Output = Literal["mask", "confidence", "heatmap", "overlay"]


class SegmentQuery(BaseModel):
    """The query of `POST /segment`; unknown names are refused, as a typo would change meaning."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Default: the only model, or the configured one.")
    calibrator: str = Field(
        "active", description="A version id, `active`, or `none` for the plain softmax."
    )
    min_confidence: float | SkipJsonSchema[None] = Field(
        None, ge=0, le=1, description="Abstain below this confidence."
    )
    max_error: float | SkipJsonSchema[None] = Field(
        None, gt=0, lt=1, description="Abstain so that this error rate is kept, where certified."
    )
    tta: Literal["none", "flip", "multiscale"] = "none"
    include: str = Field("", description="Comma list of `mask`, `confidence`, `rle`.")
    output: Output | SkipJsonSchema[None] = Field(None, description="The image to answer with.")

    @field_validator("include")
    @classmethod
    def _known_parts(cls, value: str) -> str:
        unknown = set(filter(None, value.split(","))) - OPTIONAL_PARTS
        if unknown:
            raise ValueError(f"expected some of {sorted(OPTIONAL_PARTS)}, got {sorted(unknown)}")
        return value

    @model_validator(mode="after")
    def _one_threshold(self) -> "SegmentQuery":
        if self.min_confidence is not None and self.max_error is not None:
            raise ValueError("expected at most one of min_confidence and max_error, got both")
        return self

    @property
    def parts(self) -> frozenset[str]:
        """What the JSON body is to include."""
        return frozenset(filter(None, self.include.split(",")))


class PresentClass(BaseModel):
    """A class that occurs in the mask; `fraction` and `mean_confidence` in 0..1."""

    id: int
    name: str
    color: str
    pixels: int
    fraction: float
    mean_confidence: float


class EncodedImage(BaseModel):
    """A PNG in base64."""

    format: Literal["png"] = "png"
    data: str


class RunLengths(BaseModel):
    """One class's pixels as COCO RLE, column-major; `size` is [H,W]."""

    class_id: int
    size: tuple[int, int]
    counts: str


class Calibration(BaseModel):
    """What the confidence rests on; ECE is image-wise, 10 bins, on images held out from the fit."""

    calibrator: str
    method: str
    model_sha256: str
    fitted_at: str | None
    ece_before: float | None
    ece_after: float | None
    images: int
    stale: bool = False


class Links(BaseModel):
    """Where the answer's images and arrays can be fetched for a while."""

    mask: str
    confidence: str
    heatmap: str
    overlay: str
    data: str


class SegmentAnswer(BaseModel):
    """The JSON answer of `POST /segment`."""

    id: str
    model: str
    width: int
    height: int
    classes: list[PresentClass]
    mean_confidence: float
    abstained_fraction: float
    threshold: float | None
    mask: EncodedImage | SkipJsonSchema[None] = None
    confidence: EncodedImage | SkipJsonSchema[None] = None
    rle: list[RunLengths] | SkipJsonSchema[None] = None
    calibration: Calibration
    links: Links


class ClassInfo(BaseModel):
    """A class of a model."""

    id: int
    name: str
    color: str


class ModelInfo(BaseModel):
    """A model that serves; `active_calibrator` is a version id or null.

    `default` is true of the one that answers where none is named.
    """

    name: str
    default: bool
    title: str
    license: str
    source: str
    sha256: str
    num_classes: int
    classes: list[ClassInfo]
    input: dict[str, object]
    ignore_index: int
    device: str
    active_calibrator: str | None
    metrics: dict[str, float | int | str]


class ModelList(BaseModel):
    """All models that serve, and those that were refused with the reason."""

    models: list[ModelInfo]
    refused: dict[str, str]


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: Annotated[list[dict[str, object]], Field(default_factory=list)]


class Health(BaseModel):
    """Alive or ready."""

    status: str


class CertifiedLevel(BaseModel):
    """A threshold behind `max_error`; the guarantee holds with probability 1 - `delta`.

    `coverage` (share of pixels kept) and `error` are as measured on the certification images.
    """

    max_error: float
    threshold: float
    delta: float
    coverage: float
    error: float
    images: int


class CalibratorInfo(BaseModel):
    """A stored calibrator; ECE is image-wise, 10 bins, on images held out from the fit."""

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
    seed: int
    note: str
    summary: dict[str, float]
    thresholds: list[CertifiedLevel]
    active: bool
    stale: bool = False
    format: str
    format_version: int


class CalibratorList(BaseModel):
    """A model's calibrators, newest first."""

    calibrators: list[CalibratorInfo]


class Activation(BaseModel):
    """Why a version is made active; kept in the history."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=1000)] = "no reason given"
