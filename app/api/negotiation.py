"""Which kind of answer a caller gets, by `Accept` and by what it names."""

from starlette.exceptions import HTTPException

JSON = "application/json"
PNG = "image/png"
NPZ = "application/x-npz"


def choose_answer(accept: str, output: str | None) -> str:
    """Choose JSON, PNG or npz; a caller that names an image and takes anything gets the image.

    Raises HTTPException 406 where nothing on offer is accepted.
    """
    offers = [PNG, JSON, NPZ] if output else [JSON, PNG, NPZ]
    ranges = [parse_range(part) for part in (accept or "*/*").split(",")]
    weights = {offer: _weight(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: weights[offer])
    if weights[best] <= 0:
        raise HTTPException(406, f"expected to be asked for one of {offers}, got {accept}")
    return best


def parse_range(part: str) -> tuple[str, float]:
    """Read one media range with its weight; a weight that is no number counts as 1."""
    kind, *parameters = (piece.strip() for piece in part.lower().split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return kind, float(parameter[2:])
            except ValueError:
                return kind, 1.0
    return kind, 1.0


def _weight(offer: str, ranges: list[tuple[str, float]]) -> float:
    """Weigh an offer by the most specific range that covers it."""
    for wanted in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for kind, weight in ranges:
            if kind == wanted:
                return weight
    return 0.0
