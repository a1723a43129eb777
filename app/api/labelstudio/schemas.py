"""Bodies of Label Studio's protocol; fields that are not read are ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.schemas.service import RESPONSE


class BackendHealth(BaseModel):
    """State of the backend."""

    model_config = RESPONSE

    status: Literal["UP"] = "UP"
    model_class: str = "segcal"


class SetupRequest(BaseModel):
    """A project that connects; `schema` is its labelling configuration."""

    label_config: str = Field("", alias="schema")


class BackendVersion(BaseModel):
    """The id of the active calibrator, or `uncalibrated`."""

    model_version: str


class BackendVersions(BaseModel):
    """The versions that predictions may have."""

    versions: list[str]


class LabellingTask(BaseModel):
    """A task; `data` holds the addresses of its images."""

    id: int | str | None = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """Tasks of a project to predict."""

    tasks: Annotated[list[LabellingTask], Field(min_length=1)]
    label_config: str


class BrushValue(BaseModel):
    """A mask in Label Studio's run lengths, and its label."""

    model_config = RESPONSE

    format: Literal["rle"] = "rle"
    rle: list[int]
    brushlabels: list[str]


class BrushRegion(BaseModel):
    """A region of one class; `score` is its mean confidence, in 0..1."""

    model_config = RESPONSE

    id: str
    from_name: str
    to_name: str
    type: Literal["brushlabels"] = "brushlabels"
    original_width: int
    original_height: int
    image_rotation: Literal[0] = 0
    score: float
    value: BrushValue


class TaskPrediction(BaseModel):
    """The prediction of one task; `score` is the mean confidence of all pixels, in 0..1."""

    model_version: str
    score: float
    result: list[BrushRegion]


class TaskError(BaseModel):
    """The reason why a task has no prediction, in one sentence."""

    error: str


class PredictResponse(BaseModel):
    """One prediction, or the reason why there is none, for each task in their order."""

    results: list[TaskPrediction | TaskError]


class Reference(BaseModel):
    """An object of Label Studio by its id."""

    id: int


class WebhookRequest(BaseModel):
    """An event; the ids of its annotations are read, and nothing else."""

    action: str
    annotation: Reference | list[Reference] | None = None
    annotations: list[Reference] | None = None


class WebhookResponse(BaseModel):
    """Number of annotations that will be read from Label Studio."""

    queued: int
