"""`GET /results/{id}/…`: the pictures and arrays of an earlier answer."""

from enum import IntEnum
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from app.api.negotiation import NPZ, PNG
from app.api.pictures import picture_of
from app.api.state import StateDep, TokenCheck
from app.imaging import encode

router = APIRouter(tags=["results"], dependencies=[TokenCheck])

Picture = Literal["mask", "confidence", "heatmap", "overlay"]


class Depth(IntEnum):
    """Bits of a confidence map."""

    EIGHT = 8
    SIXTEEN = 16


@router.get("/results/{result_id}/data.npz", response_class=Response)
async def data(result_id: str, state: StateDep) -> Response:
    """Fetch `mask` and `confidence` (float16) as numpy arrays."""
    result = state.results.get(result_id)
    async with state.admission.enter():
        body = await state.admission.run(lambda: encode.npz(result.mask, result.confidence))
    return Response(body, media_type=NPZ)


@router.get("/results/{result_id}/{picture}.png", response_class=Response)
async def picture(
    result_id: str,
    picture: Picture,
    state: StateDep,
    depth: Annotated[Depth, Query(description="Bits of the confidence.")] = Depth.EIGHT,
) -> Response:
    """Fetch one picture of an earlier answer."""
    result = state.results.get(result_id)
    limit = state.settings.max_pixels
    async with state.admission.enter():
        body = await state.admission.run(lambda: picture_of(result, picture, limit, depth))
    return Response(body, media_type=PNG)
