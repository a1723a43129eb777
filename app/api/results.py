"""The images of a result: mask, confidence, heatmap and overlay, as PNG.

`GET /results/{id}/…`: the images and arrays of an earlier answer.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from app.api.dependencies import StateDep, TokenCheck
from app.api.negotiation import NPZ, PNG
from app.imaging import encode
from app.imaging.decode import decode_image
from app.serving.result_cache import Result


def encode_image(result: Result, output: str, max_pixels: int, depth: int = 8) -> bytes:
    """Encode one image of a result; `depth` is that of the confidence, 8 or 16 bits."""
    makers: dict[str, Callable[[], bytes]] = {
        "mask": lambda: encode.mask_png(result.prediction.mask, result.palette),
        "confidence": lambda: encode.confidence_png(result.prediction.confidence, depth),
        "heatmap": lambda: encode.heatmap_png(result.prediction.confidence),
        "overlay": lambda: encode.overlay_png(
            decode_image(result.upload, max_pixels), result.prediction.mask, result.palette
        ),
    }
    return makers[output]()


router = APIRouter(tags=["results"], dependencies=[TokenCheck])

ImageArray = Literal["mask", "confidence", "heatmap", "overlay"]


class Depth(IntEnum):
    """Bits of a confidence map."""

    EIGHT = 8
    SIXTEEN = 16


@router.get("/results/{result_id}/data.npz", response_class=Response)
async def data(result_id: str, state: StateDep) -> Response:
    """Fetch `mask` and `confidence` (float16) as numpy arrays."""
    result = state.results.get(result_id)
    async with state.admission.enter():
        body = await state.admission.run(
            lambda: encode.npz(result.prediction.mask, result.prediction.confidence)
        )
    return Response(body, media_type=NPZ)


@router.get("/results/{result_id}/{image}.png", response_class=Response)
async def image(
    result_id: str,
    image: ImageArray,
    state: StateDep,
    depth: Annotated[Depth, Query(description="Bits of the confidence.")] = Depth.EIGHT,
) -> Response:
    """Fetch one image of an earlier answer."""
    result = state.results.get(result_id)
    limit = state.settings.max_pixels
    async with state.admission.enter():
        body = await state.admission.run(lambda: encode_image(result, image, limit, depth))
    return Response(body, media_type=PNG)
