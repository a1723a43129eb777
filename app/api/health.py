"""`/healthz` and `/readyz`: alive, and able to serve."""

from fastapi import APIRouter

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
