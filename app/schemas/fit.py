"""Options of a fit, and the status of its job."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from app.errors import ArgumentError

AUTO_METHOD = "auto"
TEMPERATURE_RANGE = (0.05, 1e4)
Activate = Literal["if_better", "always", "never"]
Routing = Literal["soft", "hard"]
METHOD_OPTIONS = ("routing", "mispredicted_temperature", "rejected_temperature")
State = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
WAITING: tuple[State, ...] = ("queued", "running")

IgnoreIndex = Annotated[int, Field(ge=-(2**31), lt=2**31)]  # label of void pixels
Temperature = Annotated[float, Field(ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])]


class FitOptions(BaseModel):
    """Options of a fit.

    `routing` and the temperatures are options of some methods only (`Calibrator.options`): see
    `Selective` and `MetaCal`. None leaves the method's own choice. With `check_labels` the gate
    also requires that labels belong to their images (see `label_agreement`).
    """

    model_config = ConfigDict(frozen=True)

    method: Annotated[str, Field(description="`auto`, or the name of one method.")] = AUTO_METHOD
    activate: Annotated[Activate, Field(description="When the version becomes active.")] = (
        "if_better"
    )
    allow_label_changes: Annotated[
        bool, Field(description="`auto` also considers methods that may change labels.")
    ] = False
    # Kept for clients; corrupted copies did harm.
    augmentation: Annotated[Literal["none"], Field(description="Of the images.")] = "none"
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="Of the split and of random methods.")
    ] = 0
    certify: Annotated[bool, Field(description="Certify thresholds for `max_error`.")] = True
    check_labels: Annotated[
        bool, Field(description="The gate also tests that labels belong to their images.")
    ] = False
    note: Annotated[str, Field(max_length=1000, description="For the record.")] = ""
    routing: Annotated[
        Routing | SkipJsonSchema[None],
        Field(description="Of `selective`: mix its two temperatures or choose one."),
    ] = None
    mispredicted_temperature: Annotated[
        Temperature | SkipJsonSchema[None],
        Field(description="Of `selective`: fixes it, and the other one at 1."),
    ] = None
    rejected_temperature: Annotated[
        Temperature | SkipJsonSchema[None],
        Field(description="Of `metacal`; by default rejected pixels are uniform."),
    ] = None

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Validate options by name; raises ArgumentError for the first invalid one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise ArgumentError(
                f"{first['loc'][0]}: {first['msg']}, got {str(first['input'])[:80]!r}"
            ) from error

    @property
    def method_options(self) -> dict[str, str | float]:
        """Return the given options of single methods, by name."""
        given = {name: getattr(self, name) for name in METHOD_OPTIONS}
        return {name: value for name, value in given.items() if value is not None}


class JobStatus(BaseModel):
    """Status of a job: `progress` in 0..1, times as RFC 3339, `remaining_s` estimated seconds."""

    model_config = ConfigDict(frozen=True)

    id: str
    model: str
    method: str
    state: State
    stage: str
    progress: float
    remaining_s: float | None = None
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    error: str | None = None
    calibrator: str | None = None
    activated: bool = False
    note: str = ""
