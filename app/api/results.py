"""`GET /results/{id}/…`: images and arrays of an earlier segmentation."""

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.dependencies import StateDep, TokenCheck
from app.api.schemas import Output
from app.imaging import encode
from app.imaging.decode import decode_image
from app.serving.result_cache import Result

PNG = "image/png"
NPZ = "application/x-npz"

router = APIRouter(tags=["results"], dependencies=[TokenCheck])


class Depth(IntEnum):
    """Bits of a confidence map."""

    EIGHT = 8
    SIXTEEN = 16


def encode_image(result: Result, output: str, max_pixels: int, depth: int = 8) -> bytes:
    """Encode one image of a result as PNG; `depth` is 8 or 16 bits for the confidence."""
    encoders: dict[str, Callable[[], bytes]] = {
        "mask": lambda: encode.mask_png(result.prediction.mask, result.palette),
        "confidence": lambda: encode.confidence_png(result.prediction.confidence, depth),
        "heatmap": lambda: encode.heatmap_png(result.prediction.confidence),
        "overlay": lambda: encode.overlay_png(
            decode_image(result.upload, max_pixels), result.prediction.mask, result.palette
        ),
    }
    return encoders[output]()


@router.get("/results/{result_id}/data.npz", response_class=Response)
async def data(result_id: str, state: StateDep) -> Response:
    """Return the arrays `mask` and `confidence` (float16) as .npz."""
    result = state.results.get(result_id)
    async with state.admission.enter():
        body = await state.admission.run(
            lambda: encode.npz(result.prediction.mask, result.prediction.confidence)
        )
    return Response(body, media_type=NPZ)


@router.get("/results/{result_id}/{image}.png", response_class=Response)
async def image(
    result_id: str,
    image: Output,
    state: StateDep,
    depth: Annotated[Depth, Query(description="Bits of the confidence.")] = Depth.EIGHT,
) -> Response:
    """Return one image of an earlier segmentation as PNG."""
    result = state.results.get(result_id)
    limit = state.settings.max_pixels
    async with state.admission.enter():
        body = await state.admission.run(lambda: encode_image(result, image, limit, depth))
    return Response(body, media_type=PNG)
