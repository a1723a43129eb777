"""`GET /results/{id}/…`: images and arrays of an earlier segmentation."""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.dependencies import StateDep, TokenCheck
from app.api.openapi import answers
from app.api.responses import respond
from app.deadline import Deadline
from app.imaging import encode
from app.imaging.decode import ImageArray
from app.schemas.service import Output
from app.serving.result_cache import Result

PNG = "image/png"
NPZ = "application/x-npz"

router = APIRouter(tags=["results"], dependencies=[TokenCheck])


class Depth(IntEnum):
    """Bits of a confidence map."""

    EIGHT = 8
    SIXTEEN = 16


def encode_image(
    result: Result, output: str, decode: Callable[[bytes], ImageArray], depth: int = 8
) -> bytes:
    """Encode one image of a result as PNG; `depth` is 8 or 16 bits for the confidence.

    `decode` decodes the upload, for the overlay.
    """
    encoders: dict[str, Callable[[], bytes]] = {
        "mask": lambda: encode.mask_png(result.prediction.mask, result.palette),
        "confidence": lambda: encode.confidence_png(result.prediction.confidence, depth),
        "heatmap": lambda: encode.heatmap_png(result.prediction.confidence),
        "overlay": lambda: encode.overlay_png(
            decode(result.upload), result.prediction.mask, result.palette
        ),
    }
    return encoders[output]()


@router.get(
    "/results/{result_id}/data.npz",
    operation_id="get_result_arrays",
    response_class=Response,
    responses=answers(404, 429, 503, 507, files=[NPZ]),
)
async def data(result_id: str, state: StateDep) -> Response:
    """Return the arrays `mask` and `confidence` (float16) as .npz."""

    def read() -> Response:
        prediction = state.results.get(result_id).prediction
        return respond(encode.npz(prediction.mask, prediction.confidence), NPZ)

    async with state.admission.enter():
        return await state.admission.run(lambda _deadline: read())


@router.get(
    "/results/{result_id}/{image}.png",
    operation_id="get_result_image",
    response_class=Response,
    responses=answers(404, 422, 429, 503, 507, files=[PNG]),
)
async def image(
    result_id: str,
    image: Output,
    state: StateDep,
    depth: Annotated[Depth, Query(description="Bits of the confidence.")] = Depth.EIGHT,
) -> Response:
    """Return one image of an earlier segmentation as PNG."""

    def read(deadline: Deadline) -> Response:
        result = state.results.get(result_id)
        decode = partial(
            state.decoders.decode, max_pixels=state.settings.max_pixels, deadline=deadline
        )
        return respond(encode_image(result, image, decode, depth), PNG)

    async with state.admission.enter():
        return await state.admission.run(read)
