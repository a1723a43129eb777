"""`/api/functions`: CVAT's automatic annotation, in the protocol of the nuclio dashboard it calls.

Each model is a function of type detector. CVAT is pointed at the service in place of nuclio.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, Field

from app.api.dependencies import SegmenterDep, StateDep, TokenCheck
from app.api.openapi import SEGMENTATION, answers
from app.api.responses import respond
from app.deadline import Deadline
from app.errors import TooLargeError, UndecodableError
from app.imaging import trace_polygons
from app.inference.model_card import ModelFolder
from app.serving.pipeline import StageTimer
from app.serving.segmenter import (
    ACTIVE,
    NO_CALIBRATOR,
    Segmentation,
    SegmentOptions,
    class_table,
)

router = APIRouter(prefix="/api", tags=["cvat"], dependencies=[TokenCheck])

JSON = "application/json"
MAX_PIXELS = 1 << 27  # of all masks' boxes; a pixel takes two bytes
DIGITS = np.frombuffer(b"0,1,", np.uint8).reshape(2, 2)


class Invocation(BaseModel):
    """An image in base64; pixels of a confidence below `threshold` have no label."""

    image: str
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


@router.get("/functions", operation_id="cvat_list_functions", responses=answers(503))
def functions(segmenter: SegmenterDep) -> dict[str, dict[str, object]]:
    """List the models as functions of type detector, by name."""
    return {
        name: describe(predictor.folder, segmenter.default_model)
        for name, predictor in segmenter.predictors.items()
    }


@router.get("/functions/{name}", operation_id="cvat_read_function", responses=answers(404, 503))
def function(name: str, segmenter: SegmenterDep) -> dict[str, object]:
    """Return one model as a function."""
    return describe(segmenter.predictor(name).folder, segmenter.default_model)


@router.post(
    "/function_invocations",
    operation_id="cvat_invoke_function",
    responses=answers(*SEGMENTATION, headers=["X-Model", "X-Calibrator"]),
)
async def invoke(
    body: Invocation,
    state: StateDep,
    segmenter: SegmenterDep,
    x_nuclio_function_name: Annotated[str, Header(description="Name of the model.")],
) -> Response:
    """Segment a frame; return a mask for each class, and the calibrator as an attribute.

    A mask is a list of 0 and 1 for the pixels of its box, row by row, and the box: left, top, right
    and bottom, inclusive.
    """
    try:
        image = base64.b64decode(body.image, validate=True)
    except binascii.Error as error:
        raise UndecodableError(f"image: expected base64, got: {error}") from error
    options = SegmentOptions(x_nuclio_function_name, ACTIVE, body.threshold)

    def work(deadline: Deadline) -> Response:
        timer = StageTimer()
        done = segmenter.segment(image, options, timer, deadline)
        model = done.predictor.folder.card.name
        state.metrics.count_segmentation(model, done.mean_confidence, timer.stages)
        headers = {"X-Model": model, "X-Calibrator": version_of(done)}
        return respond(b"[" + b",".join(masks_of(done)) + b"]", JSON, headers)

    state.admission.require_place()
    async with state.admission.enter():
        return await state.admission.run(work)


def describe(folder: ModelFolder, default: str | None) -> dict[str, object]:
    """Return a model as a function of nuclio, with the annotations that CVAT reads."""
    card = folder.card
    attributes = [{"name": "calibrator", "input_type": "text", "values": []}]
    labels = [
        {"id": index, "name": info.name, "type": "mask", "attributes": attributes}
        for index, info in enumerate(card.output.classes)
    ]
    return {
        "metadata": {
            "name": card.name,
            "annotations": {
                "name": card.title or card.name,
                "type": "detector",
                "framework": "segcal",
                "spec": json.dumps(labels),
            },
        },
        "spec": {"description": f"{card.title}{' (default)' if card.name == default else ''}"},
        "status": {"state": "ready", "httpPort": 0},
    }


def version_of(done: Segmentation) -> str:
    """Return the id of the calibrator of an answer."""
    return NO_CALIBRATOR if done.calibrator is None else done.calibrator.manifest.id


def masks_of(done: Segmentation) -> list[bytes]:
    """Encode a mask in JSON for each predicted class; raises TooLargeError for large boxes."""
    polygons, area = trace_polygons(done.prediction.mask), 0
    masks = []
    for row in class_table(done):
        pixels = done.prediction.mask == row["id"]
        rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
        top, bottom, left, right = (int(i) for i in (*rows[[0, -1]], *columns[[0, -1]]))
        crop = pixels[top : bottom + 1, left : right + 1]
        area += crop.size
        if area > MAX_PIXELS:
            raise TooLargeError(f"expected masks of at most {MAX_PIXELS} pixels, got {area}")
        largest = max(polygons[int(str(row["id"]))], key=lambda one: len(one.exterior))
        item: Mapping[str, object] = {
            "confidence": f"{row['mean_confidence']:.4f}",
            "label": row["name"],
            "type": "mask",
            "points": largest.exterior.ravel().tolist(),
            "attributes": [{"name": "calibrator", "value": version_of(done)}],
        }
        digits = DIGITS[crop.ravel().astype(np.uint8)].tobytes()
        box = f"{left},{top},{right},{bottom}".encode()
        masks.append(json.dumps(item).encode()[:-1] + b', "mask": [' + digits + box + b"]}")
    return masks
