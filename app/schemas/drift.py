"""Drift windows that the replicas of a service publish to each other."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sum = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DriftWindow(BaseModel):
    """The last predictions of one replica by a calibrator, as sums that are added to others'.

    `histograms` [64 + K] is the sum of the histograms of `images` predictions: confidence, then
    predicted classes. `answers` counts all predictions so far, those that have left the window too.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    model_sha256: str
    calibrator: str
    images: int = Field(ge=0)
    answers: int = Field(ge=0)
    histograms: tuple[Sum, ...]


class DriftWindows(BaseModel):
    """The drift windows of one replica, one for each model."""

    model_config = ConfigDict(frozen=True)

    windows: tuple[DriftWindow, ...]
