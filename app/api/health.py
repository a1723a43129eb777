"""`/healthz`, `/readyz` and `/metrics`: alive, able to serve, and how it goes."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.schemas import Health
from app.api.state import StateDep

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """Tell that the process answers."""
    return Health(status="alive")


@router.get("/readyz")
async def readyz(state: StateDep) -> Health:
    """Tell that models are loaded and warm; 503 until then and while draining."""
    state.readiness.require()
    return Health(status="ready")


@router.get("/metrics", response_class=Response)
def metrics(state: StateDep) -> Response:
    """Give all counters in Prometheus' text format."""
    text = generate_latest(state.counters.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
