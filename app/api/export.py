"""`GET /models/{model}/export`: a model with its calibrator as one ONNX file."""

from fastapi import APIRouter, Response

from app.api.dependencies import AdminCheck, SegmenterDep, StateDep
from app.api.openapi import answers
from app.serving.segmenter import ACTIVE, NO_CALIBRATOR

router = APIRouter(prefix="/models", tags=["models"])

ONNX = "application/octet-stream"


@router.get(
    "/{model}/export",
    operation_id="export_model",
    response_class=Response,
    dependencies=[AdminCheck],
    responses=answers(404, 409, 429, 503, files=[ONNX], headers=["Content-Disposition"]),
)
def export(
    model: str, state: StateDep, segmenter: SegmenterDep, calibrator: str = ACTIVE
) -> Response:
    """Download one ONNX file from an image to labels and confidence, checked against the service.

    Its metadata hold the certificate. An export takes some 20 seconds, one at a time.
    """
    folder = segmenter.predictor(model).folder
    stored = segmenter.calibrator(segmenter.predictor(model), calibrator)
    version = NO_CALIBRATOR if stored is None else stored.manifest.id
    body = state.exporter.export(folder, version)
    headers = {"Content-Disposition": f'attachment; filename="{folder.card.name}.onnx"'}
    return Response(body, media_type=ONNX, headers=headers)
