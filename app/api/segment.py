"""`POST /segment`: segment one image; respond with JSON, an image or arrays."""

import base64
import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from app.api.dependencies import SegmenterDep, State, StateDep, TokenCheck, run_on_body
from app.api.openapi import BINARY, FILE, SEGMENTATION, SEGMENTATION_HEADERS, answers
from app.api.responses import respond
from app.api.results import NPZ, PNG, encode_image
from app.api.uploads import parsed_form
from app.deadline import Deadline
from app.errors import ArgumentError, MediaTypeError, TooLargeError
from app.imaging import encode
from app.imaging.polygons import trace_polygons
from app.schemas.service import (
    GUARANTEES,
    OPTIONAL_PARTS,
    Calibration,
    ClassPolygons,
    EncodedImage,
    Links,
    PolygonWithHoles,
    PresentClass,
    RunLengths,
    SegmentQuery,
    SegmentResponse,
)
from app.serving.pipeline import StageTimer
from app.serving.result_cache import Result
from app.serving.segmenter import (
    NO_CALIBRATOR,
    Segmentation,
    Segmenter,
    SegmentOptions,
    abstained_fraction,
    class_table,
)

router = APIRouter(tags=["segment"], dependencies=[TokenCheck])

JSON = "application/json"
RESULT_ID = "X-Result-Id"
REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": BINARY},
                }
            },
            "image/*": FILE,
        },
    }
}
ANSWERS = answers(
    406,
    *SEGMENTATION,
    files=(PNG, NPZ),
    headers=(*SEGMENTATION_HEADERS, RESULT_ID, "Server-Timing"),
)


@router.post(
    "/segment",
    operation_id="segment",
    response_model=SegmentResponse,
    openapi_extra=REQUEST_BODY,
    responses=ANSWERS,
)
async def segment(
    request: Request,
    query: Annotated[SegmentQuery, Query()],
    state: StateDep,
    segmenter: SegmenterDep,
) -> Response:
    """Segment one image (JPEG, PNG, WebP, TIFF or BMP) with calibrated confidence.

    The header `Accept` selects JSON, PNG or npz; with `output` and without `Accept` the response is
    the PNG.
    """
    media_type = choose_media_type(", ".join(request.headers.getlist("accept")), query.output)
    response = await run_on_body(
        request,
        state,
        lambda upload, deadline: respond_to_upload(
            upload, query, media_type, segmenter, state, deadline
        ),
        lambda body: read_image(request, body, state.settings.max_upload_bytes),
    )
    await state.results.wait_for(response.headers[RESULT_ID])
    return response


async def read_image(request: Request, body: bytearray, max_bytes: int) -> bytes:
    """Return the image's bytes from the form's field `image` or the raw body.

    Raises TooLargeError, MediaTypeError, ArgumentError.
    """
    upload = await _image_bytes(request, body)
    if len(upload) > max_bytes:
        raise TooLargeError(f"expected an image of at most {max_bytes} bytes, got {len(upload)}")
    return upload


async def _image_bytes(request: Request, body: bytearray) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        return bytes(body)
    if kind != "multipart/form-data":
        raise MediaTypeError(
            f"expected multipart/form-data or image/*, got {kind or 'no content type'}"
        )
    async with parsed_form(request, body, max_files=1, max_fields=8) as form:
        if misplaced := sorted(set(form) & set(SegmentQuery.model_fields)):
            raise ArgumentError(f"expected options in the query, got the form fields {misplaced}")
        part = form.get("image")
        if not isinstance(part, UploadFile):
            raise ArgumentError(f"expected a file in the field image, got fields {sorted(form)}")
        return await part.read()


def respond_to_upload(
    upload: bytes,
    query: SegmentQuery,
    media_type: str,
    segmenter: Segmenter,
    state: State,
    deadline: Deadline,
) -> Response:
    """Segment an upload, cache the result and encode the response; blocks, so run in a thread."""
    started = time.perf_counter()
    decode = partial(state.decoders.decode, max_pixels=state.settings.max_pixels, deadline=deadline)
    timer = StageTimer()
    options = SegmentOptions(
        query.model, query.calibrator, query.min_confidence, query.max_error, query.tta
    )
    done = segmenter.segment(upload, options, timer, deadline)
    model = done.predictor.folder
    result = Result(model.card.name, upload, done.prediction, model.palette)
    name = state.results.put(result)
    with timer.stage("encode"):
        if media_type == JSON:
            body = response_json(name, done, query.parts).encode()
        elif media_type == NPZ:
            body = encode.npz(done.prediction.mask, done.prediction.confidence)
        else:
            body = encode_image(result, query.output or "mask", decode)
    timer.stages["total"] = (time.perf_counter() - started) * 1000
    state.metrics.count_segmentation(
        model.card.name, done.mean_confidence, timer.stages, done.prediction.in_distribution,
        None if done.threshold is None else abstained_fraction(done),
    )  # fmt: skip
    headers = {
        "X-Model": model.card.name,
        "X-Calibrator": NO_CALIBRATOR if done.calibrator is None else done.calibrator.manifest.id,
        RESULT_ID: name,
        "Server-Timing": ", ".join(f"{k};dur={v:.2f}" for k, v in timer.stages.items()),
    }
    if done.guarantee is not None:
        headers["X-Guarantee"] = GUARANTEES[done.guarantee.applies]
    return respond(body, media_type, headers)


def response_json(name: str, done: Segmentation, parts: frozenset[str]) -> str:
    """Return the JSON response; `parts` are the optional parts to include."""
    height, width = done.prediction.mask.shape
    palette = done.predictor.folder.palette
    table = class_table(done)
    body = SegmentResponse(
        id=name,
        model=done.predictor.folder.card.name,
        width=width,
        height=height,
        classes=[PresentClass.model_validate(row) for row in table],
        mean_confidence=done.mean_confidence,
        abstained_fraction=abstained_fraction(done),
        threshold=done.threshold,
        calibration=calibration_block(done),
        links=links_of(name),
    )
    if "mask" in parts:
        body.mask = encode_base64(encode.mask_png(done.prediction.mask, palette))
    if "confidence" in parts:
        body.confidence = encode_base64(encode.confidence_png(done.prediction.confidence))
    if "rle" in parts:
        body.rle = [run_lengths_of(done, present.id) for present in body.classes]
    if "polygons" in parts:
        body.polygons = polygons_of(done)
    return body.model_dump_json(exclude=set(OPTIONAL_PARTS - parts))


def encode_base64(data: bytes) -> EncodedImage:
    """Encode a PNG as base64."""
    return EncodedImage(data=base64.b64encode(data).decode("ascii"))


def run_lengths_of(done: Segmentation, class_id: int) -> RunLengths:
    """Encode one class's pixels as COCO RLE."""
    size, counts = encode.run_lengths(done.prediction.mask, class_id)
    return RunLengths(class_id=class_id, size=size, counts=counts)


def polygons_of(done: Segmentation) -> list[ClassPolygons]:
    """Trace the regions of each class; raises TooLargeError for more than 2^20 points."""
    return [
        ClassPolygons(
            class_id=class_id,
            polygons=[
                PolygonWithHoles(
                    exterior=polygon.exterior.tolist(),
                    holes=[hole.tolist() for hole in polygon.holes],
                )
                for polygon in polygons
            ],
        )
        for class_id, polygons in sorted(trace_polygons(done.prediction.mask).items())
    ]


def calibration_block(done: Segmentation) -> Calibration:
    """Return the calibrator of an answer, and how good it was measured to be."""
    if done.calibrator is None:
        return Calibration(model_sha256=done.predictor.folder.sha256)
    manifest = done.calibrator.manifest
    return Calibration.model_validate(
        {
            **dict(manifest),
            "calibrator": manifest.id,
            "stale": done.stale,
            "in_distribution": done.prediction.in_distribution,
            "guarantee": done.guarantee,
        }
    )


def links_of(name: str) -> Links:
    """Return the paths of a result's images and arrays."""
    return Links(
        mask=f"/results/{name}/mask.png",
        confidence=f"/results/{name}/confidence.png",
        heatmap=f"/results/{name}/heatmap.png",
        overlay=f"/results/{name}/overlay.png",
        data=f"/results/{name}/data.npz",
    )


def choose_media_type(accept: str, output: str | None) -> str:
    """Choose JSON, PNG or npz by `Accept`; with `output` PNG is preferred to JSON.

    Raises HTTPException 406 where none of them is accepted.
    """
    offers = [PNG, JSON, NPZ] if output else [JSON, PNG, NPZ]
    ranges = [parse_range(part) for part in (accept or "*/*").split(",")]
    weights = {offer: _weight(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: weights[offer])
    if weights[best] <= 0:
        raise HTTPException(406, f"expected Accept to allow one of {offers}, got {accept}")
    return best


def parse_range(part: str) -> tuple[str, float]:
    """Parse a media range and its weight; a weight that is not a number counts as 1."""
    kind, *parameters = (piece.strip() for piece in part.lower().split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return kind, float(parameter[2:])
            except ValueError:
                return kind, 1.0
    return kind, 1.0


def _weight(offer: str, ranges: list[tuple[str, float]]) -> float:
    """Return the weight of the most specific range that matches an offer, 0 where none does."""
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for kind, weight in ranges:
            if kind == pattern:
                return weight
    return 0.0
