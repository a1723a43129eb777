"""Health, models, Prometheus metrics, API documentation and the web page.

All files of the pages are served by this process, so that they work without internet access.
"""

from dataclasses import asdict
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.dependencies import AdminCheck, MetricsCheck, SegmenterDep, StateDep
from app.api.openapi import answers
from app.api.security import CSP, PAGE_POLICY, docs_policy
from app.api.shared_metrics import SharedMetrics
from app.errors import ActiveCalibratorError
from app.inference.predictor import Predictor
from app.schemas.service import ClassInfo, Health, ModelInfo, ModelList, ModelReload
from app.serving.segmenter import ACTIVE, Segmenter

ASSETS = "/docs/assets"
STATIC = Path(__file__).parent / "static"

router = APIRouter()


@router.get("/healthz", operation_id="get_liveness", tags=["health"], responses=answers())
async def healthz() -> Health:
    """Respond 200 while the process is alive."""
    return Health(status="alive")


@router.get("/readyz", operation_id="get_readiness", tags=["health"], responses=answers(503))
async def readyz(state: StateDep) -> Health:
    """Respond 200 once the models are loaded and warm, 503 before and while draining."""
    state.readiness.require()
    return Health(status="ready")


@router.get(
    "/metrics",
    operation_id="get_metrics",
    tags=["health"],
    response_class=PlainTextResponse,
    dependencies=[MetricsCheck],
    responses=answers(),
)
def metrics(request: Request, state: StateDep) -> Response:
    """Return all metrics in Prometheus' text format."""
    shared: SharedMetrics | None = request.app.state.shared_metrics
    text = generate_latest(state.metrics.registry) if shared is None else shared.text()
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/models", operation_id="list_models", tags=["models"], responses=answers(503))
def models(segmenter: SegmenterDep, state: StateDep) -> ModelList:
    """List the loaded models, and the reason for each rejected model folder."""
    listed = [describe(segmenter, predictor) for predictor in segmenter.predictors.values()]
    return ModelList(models=listed, refused=dict(state.readiness.refused))


@router.get(
    "/models/{model}", operation_id="get_model", tags=["models"], responses=answers(404, 503)
)
def model(model: str, segmenter: SegmenterDep) -> ModelInfo:
    """Return one model."""
    return describe(segmenter, segmenter.predictor(model))


@router.post(
    "/models/reload",
    operation_id="reload_models",
    tags=["models"],
    dependencies=[AdminCheck],
    responses=answers(503),
)
def reload_models(state: StateDep) -> ModelReload:
    """Load new and changed model folders without a restart; running requests keep their models.

    A model that is refused keeps its earlier state, if it had one.
    """
    report = state.load_models(state)
    state.reload_others()
    served = state.readiness.segmenter
    return ModelReload(**asdict(report), served=[] if served is None else list(served.predictors))


def active_state(segmenter: Segmenter, predictor: Predictor) -> tuple[str | None, str | None]:
    """Return the id of a model's version in use, None without one, and its damage or None."""
    try:
        stored = segmenter.calibrator(predictor, ACTIVE)
    except ActiveCalibratorError as error:
        return None, str(error)
    return (None if stored is None else stored.manifest.id), None


def describe(segmenter: Segmenter, predictor: Predictor) -> ModelInfo:
    """Return a model's card, classes and active calibrator."""
    folder, card = predictor.folder, predictor.folder.card
    active, damage = active_state(segmenter, predictor)
    return ModelInfo(
        name=card.name,
        default=card.name == segmenter.default_model,
        title=card.title,
        license=card.license,
        source=card.source,
        sha256=folder.sha256,
        weights_sha256=folder.weights_sha256,
        num_classes=folder.num_classes,
        classes=[
            ClassInfo(id=index, name=info.name, color=info.color)
            for index, info in enumerate(card.output.classes)
        ],
        input=card.input.model_dump(mode="json"),
        ignore_index=card.output.ignore_index,
        reduce_zero_label=card.output.reduce_zero_label,
        device=predictor.backbone.device,
        warnings=list(predictor.warnings),
        active_calibrator=active,
        calibrator_damage=damage,
        metrics=card.metrics,
    )


@router.get("/docs", include_in_schema=False)
def docs() -> HTMLResponse:
    """Return the API documentation as a web page."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="segcal",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
    )
    page.headers[CSP] = docs_policy(bytes(page.body).decode())
    return page


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """Return the web page that segments an image."""
    return FileResponse(STATIC / "index.html", headers={CSP: PAGE_POLICY})


def install(app: FastAPI) -> None:
    """Add the routes, and the files of the web page and of the API documentation."""
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_swagger", "resources")]))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(router)
