"""`/calibrators`: calibrator versions, their reports, and activation."""

from fastapi import APIRouter, Response

from app.api.dependencies import AdminCheck, SegmenterDep, State, StateDep, TokenCheck
from app.api.openapi import answers
from app.api.security import CSP, SVG_POLICY
from app.schemas.calibrator import Manifest
from app.schemas.service import Activation, CalibratorInfo, CalibratorList

router = APIRouter(prefix="/calibrators", tags=["calibrators"])

SVG = "image/svg+xml"
ZIP = "application/zip"


@router.get(
    "",
    operation_id="list_calibrators",
    dependencies=[TokenCheck],
    responses=answers(404, 503),
)
def calibrators(
    state: StateDep, segmenter: SegmenterDep, model: str | None = None
) -> CalibratorList:
    """List a model's calibrator versions, newest first, and the damage of each damaged one."""
    versions, damaged = state.artifacts.scan(segmenter.predictor(model).folder.card.name)
    listed = [describe(state, manifest) for manifest in versions]
    return CalibratorList(calibrators=listed, damaged=damaged)


@router.get(
    "/{calibrator}",
    operation_id="get_calibrator",
    dependencies=[TokenCheck],
    responses=answers(404, 409),
)
def calibrator(calibrator: str, state: StateDep) -> CalibratorInfo:
    """Return one calibrator version."""
    return describe(state, state.artifacts.find(calibrator))


@router.get(
    "/{calibrator}/report",
    operation_id="get_report",
    dependencies=[TokenCheck],
    responses=answers(404, 409),
)
def report(calibrator: str, state: StateDep) -> dict[str, object]:
    """Return the fit's report: metrics of all candidates, reliability curves, the decision."""
    return state.artifacts.report(state.artifacts.model_of(calibrator), calibrator)


@router.get(
    "/{calibrator}/reliability.svg",
    operation_id="get_reliability_diagram",
    response_class=Response,
    dependencies=[TokenCheck],
    responses=answers(404, 409, files=[SVG]),
)
async def reliability(calibrator: str, state: StateDep) -> Response:
    """Draw the reliability diagram, uncalibrated and calibrated, on the held-out images."""
    body = await state.diagrams.svg(calibrator)
    return Response(body, headers={CSP: SVG_POLICY}, media_type=SVG)


@router.get(
    "/{calibrator}/archive",
    operation_id="download_calibrator",
    response_class=Response,
    dependencies=[TokenCheck],
    responses=answers(404, 409, files=[ZIP], headers=["Content-Disposition"]),
)
def archive(calibrator: str, state: StateDep) -> Response:
    """Download a version: manifest, parameters and report in a zip archive."""
    body = state.artifacts.archive(state.artifacts.model_of(calibrator), calibrator)
    headers = {"Content-Disposition": f'attachment; filename="{calibrator}.zip"'}
    return Response(body, media_type=ZIP, headers=headers)


@router.post(
    "/{calibrator}/activate",
    operation_id="activate_calibrator",
    dependencies=[AdminCheck],
    responses=answers(404, 409, 422, 503, 507),
)
def activate(
    calibrator: str, state: StateDep, segmenter: SegmenterDep, body: Activation | None = None
) -> CalibratorInfo:
    """Activate a version; activating an earlier one is the rollback."""
    manifest = state.artifacts.find(calibrator)
    folder = segmenter.predictor(manifest.model).folder
    state.artifacts.load(manifest.model, calibrator, folder.sha256, folder.weights_sha256)
    reason = body.reason if body else Activation().reason
    state.artifacts.activate(manifest.model, calibrator, reason, by="admin over HTTP")
    return describe(state, manifest)


@router.delete(
    "/{calibrator}",
    operation_id="delete_calibrator",
    status_code=204,
    dependencies=[AdminCheck],
    responses=answers(404, 409, 507, status=204),
)
def delete(calibrator: str, state: StateDep) -> None:
    """Delete a version that is not active."""
    state.artifacts.delete(state.artifacts.model_of(calibrator), calibrator)


def describe(state: State, manifest: Manifest) -> CalibratorInfo:
    """Return a version's manifest, and whether it is active and stale."""
    active = state.artifacts.is_active(manifest)
    stale = state.drift.is_stale(manifest.model, manifest.id)
    return CalibratorInfo(**manifest.model_dump(), active=active, stale=stale)
