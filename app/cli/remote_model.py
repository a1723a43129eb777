"""A model of a running service, as `segcal evaluate --url` evaluates it."""

import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path

from torch import Tensor

from app.calibration.predictions import Prediction
from app.client import Client
from app.datasets.images import Pair
from app.evaluation.evaluate import ImagePredictions, ScoredPrediction
from app.evaluation.fit_images import FitImages
from app.inference.model_card import Card, ModelFolder
from app.inference.predictor import Tta
from app.schemas.calibrator import Manifest
from app.serving.segmenter import ACTIVE, NO_CALIBRATOR

CARD_FIELDS = {"name", "title", "license", "source", "metrics"}  # that GET /models returns


class RemoteModel:
    """A model of a running service, with one of its calibrators or none."""

    def __init__(
        self, client: Client, model: str | None, calibrator: str = ACTIVE, tta: Tta = "none"
    ) -> None:
        self._client, self.tta = client, tta
        served = client.model(model)
        output = {
            "ignore_index": served.ignore_index,
            "reduce_zero_label": served.reduce_zero_label,
            "classes": [{"name": c.name, "color": c.color} for c in served.classes],
        }
        fields = served.model_dump(include=CARD_FIELDS)
        card = Card.model_validate({**fields, "file": "served.onnx", "output": output})
        self.folder = ModelFolder(card, Path(), served.sha256, served.weights_sha256)
        version = served.active_calibrator if calibrator == ACTIVE else calibrator
        self.manifest: Manifest | None = None
        self.fit_images: FitImages | None = None
        if version is not None and version != NO_CALIBRATOR:
            self.manifest = client.calibrator(version)
            self.fit_images = FitImages.recorded(client.report(version))

    def with_tta(self, tta: Tta) -> "RemoteModel":
        """Return the model with another test-time augmentation."""
        other = copy(self)
        other.tta = tta
        return other

    def predict(self, pair: Pair, temperatures: Sequence[float] = ()) -> ImagePredictions:
        """Request the prediction of an image without the calibrator, and with it.

        There are none at temperatures, which need the probabilities of all classes.
        """
        del temperatures
        image = pair.image.read_bytes()
        plain = self._request(image, NO_CALIBRATOR)
        return ImagePredictions(
            plain, None if self.manifest is None else self._request(image, self.manifest.id)
        )

    def _request(self, image: bytes, calibrator: str) -> ScoredPrediction:
        found = self._client.segment(
            image, model=self.folder.card.name, calibrator=calibrator, tta=self.tta
        )
        prediction = Prediction(found.mask, found.confidence)
        return ScoredPrediction(prediction, unknown_scores)


def unknown_scores(_labels: Tensor) -> tuple[float, float]:
    """Return NaN for NLL and Brier: they need every class's probability, not only the label's."""
    return math.nan, math.nan
