"""`POST /huggingface`: image segmentation as the clients of Hugging Face send and read it."""

import base64
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, TypeAdapter

from app.api.dependencies import SegmenterDep, State, StateDep, TokenCheck, run_on_body
from app.api.openapi import FILE, SEGMENTATION, SEGMENTATION_HEADERS, answers
from app.api.responses import respond
from app.api.segment import encode_base64
from app.deadline import Deadline
from app.errors import UndecodableError
from app.imaging import encode
from app.open_inference import decode_body, validate
from app.schemas.service import GUARANTEES, InferenceOptions, PresentClass
from app.serving.pipeline import StageTimer
from app.serving.segmenter import (
    NO_CALIBRATOR,
    Segmentation,
    Segmenter,
    SegmentOptions,
    class_table,
)

router = APIRouter(tags=["hugging face"], dependencies=[TokenCheck])

JSON = "application/json"
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": FILE,
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {"type": "string"},
                        "parameters": {"type": "object"},
                    },
                }
            },
        },
    }
}
ANSWERS = answers(*SEGMENTATION, headers=SEGMENTATION_HEADERS)


class HuggingFaceOptions(InferenceOptions):
    """Options in the query, or as `parameters` of a JSON body."""

    calibrator: str = Field(
        "active", description="A version id, `active`, or `none` for the plain softmax."
    )
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Omit classes whose mean confidence is below this."
    )
    subtask: Annotated[Literal["semantic"], Field(description="The only one.")] = "semantic"


class JsonBody(BaseModel):
    """A body of JSON: an image in base64, and options."""

    inputs: str
    parameters: dict[str, Any] = {}


class Segment(BaseModel):
    """A class of the image: its mean calibrated confidence, and its mask as PNG in base64.

    The mask has 255 at the pixels of the class and 0 elsewhere.
    """

    label: str
    score: float
    mask: str


Segments = TypeAdapter(list[Segment])
Options = Annotated[HuggingFaceOptions, Query()]


@router.post(
    "/huggingface",
    operation_id="huggingface_segment",
    response_model=list[Segment],
    openapi_extra=BODY,
    responses=ANSWERS,
)
async def segment(
    request: Request, options: Options, state: StateDep, segmenter: SegmenterDep
) -> Response:
    """Segment an image with the default model, as `InferenceClient.image_segmentation` asks for.

    The body is the bytes of an image, or JSON with the image in base64 as `inputs` and with
    `parameters`, which take precedence over the query.
    """
    return await _segment(None, request, options, state, segmenter)


@router.post(
    "/huggingface/{model}",
    operation_id="huggingface_segment_model",
    response_model=list[Segment],
    openapi_extra=BODY,
    responses=ANSWERS,
)
async def segment_model(
    model: str, request: Request, options: Options, state: StateDep, segmenter: SegmenterDep
) -> Response:
    """Segment an image with one model, as `InferenceClient.image_segmentation` asks for."""
    return await _segment(model, request, options, state, segmenter)


async def _segment(
    model: str | None,
    request: Request,
    options: HuggingFaceOptions,
    state: State,
    segmenter: Segmenter,
) -> Response:
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON
    return await run_on_body(
        request,
        state,
        lambda body, deadline: respond_to_body(
            body, is_json, model, options, segmenter, state, deadline
        ),
    )


def respond_to_body(
    body: bytes,
    is_json: bool,
    model: str | None,
    options: HuggingFaceOptions,
    segmenter: Segmenter,
    state: State,
    deadline: Deadline,
) -> Response:
    """Segment the image of a body and encode its classes; blocks, so run it in a thread."""
    started, timer = time.perf_counter(), StageTimer()
    upload = body
    if is_json:
        message, _ = decode_body(body, None, JsonBody)
        given = options.model_dump(exclude_unset=True)
        options = validate(HuggingFaceOptions, {**given, **message.parameters})
        upload = decode_base64(message.inputs)
    done = segmenter.segment(
        upload,
        SegmentOptions(
            model, options.calibrator, options.min_confidence, options.max_error, options.tta
        ),
        timer,
        deadline,
    )
    with timer.stage("encode"):
        encoded = Segments.dump_json(segments_of(done, options.threshold))
    timer.stages["total"] = (time.perf_counter() - started) * 1000
    name = done.predictor.folder.card.name
    state.metrics.count_segmentation(name, done.mean_confidence, timer.stages)
    version = NO_CALIBRATOR if done.calibrator is None else done.calibrator.manifest.id
    headers = {"X-Model": name, "X-Calibrator": version}
    if done.guarantee is not None:
        headers["X-Guarantee"] = GUARANTEES[done.guarantee.applies]
    return respond(encoded, JSON, headers)


def decode_base64(text: str) -> bytes:
    """Decode base64; raises UndecodableError."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UndecodableError(f"inputs: expected an image in base64, got: {error}") from error


def segments_of(done: Segmentation, threshold: float) -> list[Segment]:
    """Return the classes present, with a mean confidence of at least the threshold."""
    present = [PresentClass.model_validate(row) for row in class_table(done)]
    return [
        Segment(
            label=each.name,
            score=each.mean_confidence,
            mask=encode_base64(encode.region_png(done.prediction.mask == each.id)).data,
        )
        for each in present
        if each.mean_confidence >= threshold
    ]
