"""FastAPI alone: a plain `def` endpoint, which FastAPI runs in its thread pool."""

from typing import Annotated

import uvicorn
from fastapi import FastAPI, File

from benchmarks.serving.servers import Pipeline, read_plan


def create_app() -> FastAPI:
    """Build the application; uvicorn calls this once in every worker process."""
    app = FastAPI()
    pipeline = Pipeline(read_plan())

    @app.post("/segment")
    def segment(image: Annotated[bytes, File()]) -> dict[str, str]:
        return pipeline(image)

    return app


if __name__ == "__main__":
    plan = read_plan()
    uvicorn.run(
        "benchmarks.serving.servers.plain_fastapi:create_app",
        factory=True,
        port=plan.port,
        workers=plan.workers,
        timeout_worker_healthcheck=60,  # importing torch on a busy machine takes longer than 5 s
        log_level="warning",
    )
