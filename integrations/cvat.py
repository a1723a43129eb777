"""A function for CVAT's automatic annotation that asks a segcal service; needs cvat-sdk[masks].

    cvat-cli task auto-annotate TASK --function-file integrations/cvat.py -p url=str:http://HOST:8000

Optional parameters: `model`, `token` (an API token) and `min_confidence`, below which pixels
have no label; a confidence threshold given to cvat-cli takes its place.
"""

import base64
import io
import json
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import PIL.Image
from cvat_sdk import models
from cvat_sdk.masks import encode_mask

TIMEOUT_S = 120


class Segmentation:
    """Masks, or polygons, of the classes of one model of a service."""

    def __init__(
        self, url: str, model: str | None, token: str | None, min_confidence: float | None
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url: expected http:// or https://, got {url!r}")
        self._url, self._token, self._min_confidence = url.rstrip("/"), token, min_confidence
        served = self._ask("/models")["models"]
        chosen = [one for one in served if one["name"] == model or (not model and one["default"])]
        if not chosen:
            names = [one["name"] for one in served]
            raise ValueError(f"model: expected one of {names}, got {model!r}")
        self._model = chosen[0]["name"]
        self._spec = cvataa.DetectionFunctionSpec(
            labels=[
                cvataa.label_spec(one["name"], one["id"], type="any")
                for one in chosen[0]["classes"]
            ]
        )

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """Return the labels of the model."""
        return self._spec

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """Segment an image; return one mask for each class, or all outlines as polygons.

        Polygons of CVAT have no holes: with `conv_mask_to_poly` only exteriors are returned.
        """
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        query = {"model": self._model, "include": "mask,polygons"}
        threshold = context.conf_threshold
        threshold = self._min_confidence if threshold is None else threshold
        if threshold is not None:
            query["min_confidence"] = str(threshold)
        answer = self._ask(f"/segment?{urlencode(query)}", buffer.getvalue())
        if context.conv_mask_to_poly:
            return [
                cvataa.polygon(entry["class_id"], np.ravel(one["exterior"]).astype(float).tolist())
                for entry in answer["polygons"]
                for one in entry["polygons"]
            ]
        data = base64.b64decode(answer["mask"]["data"])
        mask = np.asarray(PIL.Image.open(io.BytesIO(data)))
        return [
            cvataa.mask(
                entry["id"], encode_mask(mask == entry["id"]), score=entry["mean_confidence"]
            )
            for entry in answer["classes"]
        ]

    def _ask(self, path: str, image: bytes | None = None) -> Any:  # noqa: ANN401 - any JSON
        headers = {"Accept": "application/json", "Content-Type": "image/png"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(f"{self._url}{path}", image, headers)  # noqa: S310 - checked above
        try:
            with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
                return json.load(response)
        except HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")) from error


def create(
    url: str,
    model: str | None = None,
    token: str | None = None,
    min_confidence: float | None = None,
) -> Segmentation:
    """Return the function; `model` is by default the service's default model."""
    return Segmentation(url, model, token, min_confidence)
