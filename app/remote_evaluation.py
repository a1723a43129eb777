"""A running service as what is evaluated: its own masks and confidence, over HTTP."""

import io
import math
from dataclasses import fields
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
from torch import Tensor

from app.connection import Connection
from app.evaluation import Answered
from app.inference.card import Card, ModelFolder
from app.inference.predictor import Tta
from app.labelled import Pair
from app.service import ACTIVE, NO_CALIBRATOR
from app.versions import Manifest

NPZ = "application/x-npz"
KNOWN = ("name", "title", "license", "source", "metrics")  # of a card, to those who ask


class There:
    """A model that a service serves, its default one or by name, with a calibrator or none."""

    def __init__(
        self, connection: Connection, model: str | None, calibrator: str = ACTIVE, tta: Tta = "none"
    ) -> None:
        told = connection.model(model)
        output = {
            "ignore_index": told["ignore_index"],
            "classes": [{"name": c["name"], "color": c["color"]} for c in told["classes"]],
        }
        known = {name: told[name] for name in KNOWN}
        card = Card.model_validate({**known, "file": "served.onnx", "output": output})
        self.folder = ModelFolder(card, Path(), told["sha256"])
        self.manifest = self._manifest(connection, told["active_calibrator"], calibrator)
        self._connection, self._tta = connection, tta

    def answers(self, pair: Pair) -> tuple[Answered, Answered | None]:
        """Have a picture answered without the calibrator, and with it."""
        picture = pair.image.read_bytes()
        plain = self._ask(picture, NO_CALIBRATOR)
        return plain, None if self.manifest is None else self._ask(picture, self.manifest.id)

    def _ask(self, picture: bytes, calibrator: str) -> Answered:
        query = {"model": self.folder.card.name, "calibrator": calibrator, "tta": self._tta}
        kinds = {"Content-Type": "image/*", "Accept": NPZ}
        with self._connection.open(f"/segment?{urlencode(query)}", picture, kinds) as answer:
            arrays = np.load(io.BytesIO(answer.read()), allow_pickle=False)
        return Answered(arrays["mask"], arrays["confidence"].astype(np.float32), unknown)

    @staticmethod
    def _manifest(connection: Connection, active: str | None, wanted: str) -> Manifest | None:
        """Read the record of a version; None where there is none to measure."""
        version = active if wanted == ACTIVE else None if wanted == NO_CALIBRATOR else wanted
        if version is None:
            return None
        told = connection.json(f"/calibrators/{quote(version, safe='')}")
        known = {field.name: told[field.name] for field in fields(Manifest) if field.name in told}
        return Manifest(**known)


def unknown(_labels: Tensor) -> tuple[float, float]:
    """NLL and Brier need every class's probability, which an answer does not hold."""
    return math.nan, math.nan
