"""`GET /`: the web page; everything it loads comes from this process."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; style-src 'self'"
)

router = APIRouter()


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """Show the page: a picture in, labels and confidence out."""
    return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": POLICY})


def install(app: FastAPI) -> None:
    """Add the page and what it loads."""
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(router)
