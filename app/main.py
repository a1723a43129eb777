"""Build the application from its settings, load the models, and serve."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app import __version__
from app.api import (
    calibrate,
    calibrators,
    cvat,
    export,
    huggingface,
    openapi,
    problem_details,
    results,
    segment,
    server,
    system,
)
from app.api.auth import admin_token
from app.api.dependencies import Admission, Readiness, State, alone
from app.api.diagrams import Diagrams
from app.api.gauges import ProcessGauges, ServiceGauges
from app.api.labelstudio import routes as labelstudio
from app.api.labelstudio.collector import Collector
from app.api.metrics import MetricsMiddleware, ServiceMetrics
from app.api.middleware import (
    BodySizeMiddleware,
    DrainBodyMiddleware,
    HeadMiddleware,
    ProblemMiddleware,
    UploadTimeoutMiddleware,
)
from app.api.model_loading import load_models, retry_remote_models, start_models
from app.api.open_inference import routes as open_inference
from app.api.request_log import REQUEST_ID, RequestLogMiddleware, configure_logging
from app.api.security import SecurityHeadersMiddleware
from app.api.shared_metrics import SharedMetrics, publish_regularly
from app.api.tracing import install_tracing
from app.api.uploads import UploadBuffer
from app.conversion.export_process import Exporter
from app.errors import UnavailableError
from app.imaging import DecoderPool
from app.inference.threads import ActiveRequests, SharedActiveRequests
from app.jobs.queue import Jobs
from app.open_inference import HEADER_LENGTH
from app.process_group import ProcessGroup
from app.serving.drift_monitor import DriftMonitor, DriftPolicy
from app.serving.model_folders import check_models, max_concurrent_requests
from app.serving.shared_storage import exchanging_drift, open_results, open_shared
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore

log = logging.getLogger(__name__)

EXPOSED_HEADERS = [
    "Location", "Retry-After", "Server-Timing", "X-Calibrator", "X-Model", "X-Request-Id",
    "X-Result-Id", HEADER_LENGTH,
]  # fmt: skip
FORM_OVERHEAD = 64 << 10  # bytes of a multipart body besides its files


def create_app(settings: Settings | None = None, group: ProcessGroup | None = None) -> FastAPI:
    """Build the application; its lifespan loads the models.

    `group` is given where several processes serve it, and the settings are those of this one.
    Raises SettingsError for a wrong setting. Model folders that cannot be loaded are reported with
    their reason, and the others are served.
    """
    settings = settings or load_settings()
    check_models(settings)
    drift = DriftMonitor(DriftPolicy(settings.drift_window, settings.drift_patience))
    artifacts = open_artifacts(settings)
    shared = open_shared(settings)
    state = State(
        settings=settings,
        admin_token=admin_token(settings.admin_token, token_folder(settings, group)),
        readiness=Readiness(),
        admission=Admission(
            max_concurrent_requests(settings),
            settings.queue_limit,
            settings.request_timeout_s,
            active_requests_of(group),
        ),
        results=open_results(settings, shared),
        metrics=ServiceMetrics(drift),
        drift=drift,
        artifacts=artifacts,
        diagrams=Diagrams(artifacts),
        uploads=UploadBuffer(settings.upload_buffer_bytes),
        jobs=Jobs(settings),
        decoders=DecoderPool(),
        exporter=Exporter(settings),
        load_models=load_models,
        # The supervisor passes the signal on to all of its processes.
        reload_others=alone if group is None else partial(os.kill, os.getppid(), signal.SIGHUP),
    )
    state.metrics.registry.register(ServiceGauges(state))
    state.metrics.registry.register(ProcessGauges(state))
    shared_metrics = None if group is None else SharedMetrics(state, group)

    collector = Collector(state)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # The server answers, /readyz with 503, while the models load in a thread.
        loading = asyncio.create_task(asyncio.to_thread(start_models, state))
        retrying = asyncio.create_task(retry_remote_models(state, loading))
        await asyncio.to_thread(state.artifacts.recover)
        await asyncio.to_thread(state.jobs.start)
        collector.start()
        if group is not None and not group.answers_while_loading:
            await loading
        publishing = asyncio.create_task(publish_regularly(shared_metrics))
        async with exchanging_drift(drift, shared):
            yield
        state.readiness.draining.set()
        await asyncio.to_thread(collector.stop)
        await asyncio.to_thread(state.jobs.stop)
        await loading
        retrying.cancel()
        publishing.cancel()
        state.decoders.close()
        await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(
        title="segcal",
        version=__version__,
        summary="Segmentation with confidence you can act on",
        lifespan=lifespan,
        docs_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's Host header
        redoc_url=None,
        responses=openapi.RANGES,
    )
    app.state.segcal = state
    app.state.labelstudio = collector
    app.state.shared_metrics = shared_metrics
    tracing = install_tracing(app, settings.traces)
    app.add_middleware(
        BodySizeMiddleware,
        max_bytes=settings.max_upload_bytes + FORM_OVERHEAD,
        own={"/calibrate": settings.max_calibration_bytes + FORM_OVERHEAD},
    )
    app.add_middleware(UploadTimeoutMiddleware, timeout_s=settings.upload_timeout_s)
    app.add_middleware(DrainBodyMiddleware)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=state.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "traceparent",
                "tracestate",
                HEADER_LENGTH,
                REQUEST_ID,
            ],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(ProblemMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestLogMiddleware, trace_source=tracing.source)
    routers = (
        segment, results, calibrators, calibrate, export, open_inference, huggingface, labelstudio,
        cvat,
    )  # fmt: skip
    for routes in routers:
        app.include_router(routes.router)
    system.install(app)
    problem_details.install(app)
    openapi.install(app)
    return app


def open_artifacts(settings: Settings) -> ArtifactStore:
    """Open the versions; raises SettingsError for a bucket whose store ignores conditions.

    Where the store can't be reached now, it is checked before the first change.
    """
    artifacts = ArtifactStore(settings.artifacts_dir)
    try:
        artifacts.check()
    except UnavailableError as error:
        log.warning("the object store can't be checked yet: %s", error)
    return artifacts


def token_folder(settings: Settings, group: ProcessGroup | None) -> Path:
    """Return the folder of a generated admin token, which all processes of a group read."""
    folder = settings.state_dir
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return folder if group is None or os.access(existing, os.W_OK) else group.folder


def active_requests_of(group: ProcessGroup | None) -> ActiveRequests:
    """Return the count of active requests, over all processes of a group."""
    if group is None:
        return ActiveRequests()
    return SharedActiveRequests(group.active_requests, group.index)


def run(settings: Settings, host: str, port: int) -> None:
    """Build the application and serve it until a signal."""
    configure_logging(settings.log_format)
    server.serve(create_app(settings), host, port)


def run_in_group(
    settings: Settings, host: str, listener: socket.socket, group: ProcessGroup
) -> None:
    """Serve as one of several processes, on a socket that all of them accept connections from."""
    configure_logging(settings.log_format)
    port = listener.getsockname()[1]
    server.serve(create_app(settings, group), host, port, [listener])
