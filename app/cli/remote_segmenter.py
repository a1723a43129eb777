"""Segment on a running service."""

import base64

from app.cli.figures import Figures
from app.cli.segment_files import Request, Segmented
from app.client import Client
from app.schemas.service import GUARANTEES

WORKERS = 4  # the service computes two images at once on a CPU; the others are on their way


class RemoteSegmenter:
    """Segments with a client; raises SegcalError."""

    workers = WORKERS

    def __init__(self, client: Client, request: Request) -> None:
        self._client, self._request = client, request

    def __call__(self, image: bytes) -> Segmented:
        """Segment one image."""
        body = self._client.describe(image, ("mask", "confidence"), **self._request.options)
        parts = {"mask": body.mask, "confidence": body.confidence}
        files = {kind: base64.b64decode(part.data) for kind, part in parts.items() if part}
        if self._request.overlay:
            files["overlay"] = self._client.result(body.id, "overlay.png")
        if self._request.heatmap:
            files["heatmap"] = self._client.result(body.id, "heatmap.png")
        guarantee = body.calibration.guarantee
        figures = Figures(
            model=body.model,
            calibrator=body.calibration.calibrator,
            width=body.width,
            height=body.height,
            mean_confidence=body.mean_confidence,
            abstained_fraction=body.abstained_fraction,
            threshold=body.threshold,
            in_distribution=body.calibration.in_distribution,
            guarantee=GUARANTEES[guarantee.applies] if guarantee else None,
        )
        return Segmented(files, figures)
