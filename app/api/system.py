"""Health, models, Prometheus metrics, API documentation and the web page.

All files that the pages load are served by this process: the service works without a network.
"""

from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.dependencies import SegmenterDep, StateDep
from app.api.schemas import ClassInfo, Health, ModelInfo, ModelList
from app.inference.predictor import Predictor
from app.serving.segmenter import ACTIVE, Segmenter

ASSETS = "/docs/assets"
STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; style-src 'self'"
)

router = APIRouter()


@router.get("/healthz", tags=["health"])
async def healthz() -> Health:
    """Tell that the process answers."""
    return Health(status="alive")


@router.get("/readyz", tags=["health"])
async def readyz(state: StateDep) -> Health:
    """Tell that models are loaded and warm; 503 until then and while draining."""
    state.readiness.require()
    return Health(status="ready")


@router.get("/metrics", tags=["health"], response_class=Response)
def metrics(state: StateDep) -> Response:
    """Give all counters in Prometheus' text format."""
    text = generate_latest(state.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/models", tags=["models"])
def models(segmenter: SegmenterDep, state: StateDep) -> ModelList:
    """List the models that serve, and the folders that were refused with the reason."""
    listed = [describe(segmenter, predictor) for predictor in segmenter.predictors.values()]
    return ModelList(models=listed, refused=dict(state.readiness.refused))


@router.get("/models/{model}", tags=["models"])
def model(model: str, segmenter: SegmenterDep) -> ModelInfo:
    """Describe one model."""
    return describe(segmenter, segmenter.predictor(model))


def active_id(segmenter: Segmenter, predictor: Predictor) -> str | None:
    """Name the calibrator that answers now rest on."""
    stored = segmenter.calibrator(predictor, ACTIVE)
    return None if stored is None else stored.manifest.id


def describe(segmenter: Segmenter, predictor: Predictor) -> ModelInfo:
    """Shape what is known of a model."""
    folder, card = predictor.folder, predictor.folder.card
    return ModelInfo(
        name=card.name,
        default=card.name == segmenter.default_model,
        title=card.title,
        license=card.license,
        source=card.source,
        sha256=folder.sha256,
        num_classes=folder.num_classes,
        classes=[
            ClassInfo(id=index, name=info.name, color=info.color)
            for index, info in enumerate(card.output.classes)
        ],
        input=card.input.model_dump(mode="json"),
        ignore_index=card.output.ignore_index,
        device=predictor.backbone.device,
        active_calibrator=active_id(segmenter, predictor),
        metrics=card.metrics,
    )


@router.get("/docs", include_in_schema=False)
def docs() -> HTMLResponse:
    """Show the OpenAPI document."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="segcal",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
    )


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """Show the page: an image in, labels and confidence out."""
    return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})


def install(app: FastAPI) -> None:
    """Add the routes, and the files of the web page and of the API documentation."""
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_swagger", "resources")]))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(router)
