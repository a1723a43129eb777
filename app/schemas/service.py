"""Schemas of the HTTP API: request bodies, queries and responses."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from app.schemas.calibrator import Manifest
from app.schemas.fit import FitOptions, IgnoreIndex, JobStatus

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # of files
# Values of X-Guarantee, by whether a certified level applies to the image.
GUARANTEES = {True: "applies", False: "does-not-apply", None: "not-measured"}
OPTIONAL_PARTS = frozenset({"mask", "confidence", "rle", "polygons"})
Output = Literal["mask", "confidence", "heatmap", "overlay"]
# A response always has the fields with a default: the OpenAPI document lists them as required.
RESPONSE = ConfigDict(json_schema_serialization_defaults_required=True)


class InferenceOptions(BaseModel):
    """Options of one segmentation in every protocol; unknown names are rejected.

    A misspelt one would have no effect otherwise.
    """

    model_config = ConfigDict(extra="forbid")

    # With its bounds outside of the union, the OpenAPI document would not have them as bounds.
    min_confidence: Annotated[float, Field(ge=0, le=1)] | SkipJsonSchema[None] = Field(
        None, description="Abstain below this confidence."
    )
    max_error: Annotated[float, Field(gt=0, lt=1)] | SkipJsonSchema[None] = Field(
        None, description="Abstain so that this error rate is kept, where certified."
    )
    tta: Annotated[
        Literal["none", "flip", "multiscale"],
        Field(description="Test-time augmentation: views that are averaged."),
    ] = "none"

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.min_confidence is not None and self.max_error is not None:
            raise ValueError("expected at most one of min_confidence and max_error, got both")
        return self


class SegmentQuery(InferenceOptions):
    """Query of `POST /segment`."""

    model: str | None = Field(
        None, description="Default: the configured model, else the default or only one."
    )
    calibrator: str = Field(
        "active", description="A version id, `active`, or `none` for the plain softmax."
    )
    include: str = Field("", description="Comma list of `mask`, `confidence`, `rle`, `polygons`.")
    output: Output | SkipJsonSchema[None] = Field(None, description="The image to answer with.")

    @field_validator("include")
    @classmethod
    def _known_parts(cls, value: str) -> str:
        unknown = set(filter(None, value.split(","))) - OPTIONAL_PARTS
        if unknown:
            raise ValueError(f"expected some of {sorted(OPTIONAL_PARTS)}, got {sorted(unknown)}")
        return value

    @property
    def parts(self) -> frozenset[str]:
        """Optional parts that the JSON body includes."""
        return frozenset(filter(None, self.include.split(",")))


class PresentClass(BaseModel):
    """A class present in the mask; `fraction` and `mean_confidence` in 0..1."""

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
    """Pixels of one class as column-major COCO RLE; `size` is [H,W]."""

    class_id: int
    size: tuple[int, int]
    counts: str


Point = tuple[int, int]


class PolygonWithHoles(BaseModel):
    """One region: an exterior, clockwise on the screen, and holes, not closed; points are (x, y).

    Points are corners of pixels: a pixel in column c and row r covers c..c+1 by r..r+1. Pixels
    that touch at a corner only are separate regions.
    """

    exterior: list[Point]
    holes: list[list[Point]]


class ClassPolygons(BaseModel):
    """The regions of one class; filling them gives its pixels exactly."""

    class_id: int
    polygons: list[PolygonWithHoles]


class Guarantee(BaseModel):
    """The certified level behind `max_error`, and whether it applies to this image.

    `applies` is false where `in_distribution` is below 0.5: the image is unlike those for which
    the level is certified. Null where the calibrator does not measure it. `detail` is a sentence.
    """

    model_config = ConfigDict(from_attributes=True)

    max_error: float
    applies: bool | None
    detail: str


class Calibration(BaseModel):
    """The calibrator of a response, by default none.

    ECE is image-wise with 10 bins, on images held out from the fit. `in_distribution` in 0..1
    measures how similar the image is to those of the fit: it scales the shift of `contextual`, so
    that with 0 only temperature scaling is left. Null where it is not measured. `guarantee` is
    null without `max_error`.
    """

    model_config = RESPONSE

    calibrator: str = "none"
    method: str = "none"
    model_sha256: str
    fitted_at: str | None = None
    ece_before: float | None = None
    ece_after: float | None = None
    images: int = 0
    stale: bool = False
    in_distribution: float | None = None
    guarantee: Guarantee | None = None


class Links(BaseModel):
    """Paths of the result's images and arrays, which are kept for a limited time."""

    mask: str
    confidence: str
    heatmap: str
    overlay: str
    data: str


class SegmentResponse(BaseModel):
    """JSON response of `POST /segment`."""

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
    polygons: list[ClassPolygons] | SkipJsonSchema[None] = None
    calibration: Calibration
    links: Links


class ClassInfo(BaseModel):
    """A class of a model."""

    id: int
    name: str
    color: str


class ModelInfo(BaseModel):
    """A loaded model; `active_calibrator` is a version id or null.

    `sha256` is the model's identity, of its weights and of the card's input and output tables;
    `weights_sha256` is that of its file alone. `default` marks the model of requests that name
    none. `warnings` are sentences on outputs that are likely wrong. `calibrator_damage` describes
    the damage of the active calibrator, null without one.
    """

    name: str
    default: bool
    title: str
    license: str
    source: str
    sha256: str
    weights_sha256: str
    num_classes: int
    classes: list[ClassInfo]
    input: dict[str, object]
    ignore_index: int
    reduce_zero_label: bool
    device: str
    warnings: list[str]
    active_calibrator: str | None
    calibrator_damage: str | None
    metrics: dict[str, float | int | str]


class ModelList(BaseModel):
    """Loaded models, and the reason for each rejected model folder."""

    models: list[ModelInfo]
    refused: dict[str, str]


class ModelReload(BaseModel):
    """Names of models by what a reload did, and the reason for each rejected folder.

    `loaded` are new or changed. `served` are all models that are served now: an earlier state of a
    refused one too, where there was one.
    """

    loaded: list[str]
    unchanged: list[str]
    removed: list[str]
    refused: dict[str, str]
    served: list[str]


class Problem(BaseModel):
    """Problem details of an error response (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: Annotated[list[dict[str, object]], Field(default_factory=list)]


class Health(BaseModel):
    """Health of the service: `alive` or `ready`."""

    status: str


class CalibratorInfo(Manifest):
    """A stored calibrator; `stale` once the answers of the active version have drifted."""

    model_config = RESPONSE

    active: bool
    stale: bool = False


class CalibratorList(BaseModel):
    """Calibrator versions of a model, newest first; `damaged` has the damage of others by id."""

    calibrators: list[CalibratorInfo]
    damaged: dict[str, str]


class Activation(BaseModel):
    """Reason for an activation, recorded in the history."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=1000)] = "no reason given"


class CalibrateForm(FitOptions):
    """Text fields of `POST /calibrate`."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(description="Default: as for `POST /segment`.")] = None
    ignore_index: Annotated[
        IgnoreIndex | SkipJsonSchema[None],
        Field(description="Label of void pixels; by default the card's, or else 255."),
    ] = None


class JobInfo(JobStatus):
    """A calibration job; `report` is null until it has succeeded."""

    model_config = RESPONSE

    report: dict[str, object] | None


class JobList(BaseModel):
    """All jobs on record, newest first."""

    jobs: list[JobInfo]
