"""Build the application from its settings, load the models, and serve."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import torch
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app import __version__
from app.api import calibrate, calibrators, problem_details, results, segment, server, system
from app.api.auth import admin_token
from app.api.dependencies import Admission, Readiness, State
from app.api.diagrams import Diagrams
from app.api.gauges import ServiceGauges
from app.api.metrics import MetricsMiddleware, ServiceMetrics
from app.api.middleware import (
    BodySizeMiddleware,
    DrainBodyMiddleware,
    HeadMiddleware,
    ProblemMiddleware,
    UploadTimeoutMiddleware,
)
from app.api.request_log import REQUEST_ID, RequestLogMiddleware, configure_logging
from app.api.security import SecurityHeadersMiddleware
from app.api.tracing import install_tracing
from app.api.uploads import UploadBuffer
from app.errors import SettingsError
from app.imaging import DecoderPool
from app.inference.backbone import nvidia_device_present
from app.inference.batching import MAX_BATCH_SIZE
from app.inference.model_card import ModelFolder, default_name, read_model_folder
from app.inference.predictor import Predictor, open_predictor
from app.inference.threads import RowWorkers
from app.jobs.queue import Jobs
from app.serving.drift_monitor import DriftMonitor, DriftPolicy
from app.serving.memory import MemoryBudget
from app.serving.reload import LoadReport, load_folders
from app.serving.result_cache import ResultCache
from app.serving.segmenter import Segmenter
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore

log = logging.getLogger(__name__)

WORKERS = 2  # concurrent requests, each on half of the threads
GPU_WORKERS = MAX_BATCH_SIZE + 2  # a full batch is queued while another one runs
EXPOSED_HEADERS = [
    "Location", "Retry-After", "Server-Timing", "X-Calibrator", "X-Model", "X-Request-Id",
    "X-Result-Id",
]  # fmt: skip
RELOAD_ATTEMPTS = 3  # to measure memory, of which the smallest counts: requests run meanwhile
FORM_OVERHEAD = 64 << 10  # bytes of a multipart body besides its files


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; its lifespan loads the models.

    Raises SettingsError for a wrong setting. Model folders that cannot be loaded are reported with
    their reason, and the others are served.
    """
    settings = settings or load_settings()
    check_models(settings)
    drift = DriftMonitor(DriftPolicy(settings.drift_window, settings.drift_patience))
    artifacts = ArtifactStore(settings.artifacts_dir)
    state = State(
        settings=settings,
        admin_token=admin_token(settings.admin_token, settings.artifacts_dir),
        readiness=Readiness(),
        admission=Admission(
            max_concurrent_requests(settings), settings.queue_limit, settings.request_timeout_s
        ),
        results=ResultCache(settings.result_ttl_s, settings.result_bytes),
        metrics=ServiceMetrics(drift),
        drift=drift,
        artifacts=artifacts,
        diagrams=Diagrams(artifacts),
        uploads=UploadBuffer(settings.upload_buffer_bytes),
        jobs=Jobs(settings),
        decoders=DecoderPool(),
        load_models=load_models,
    )

    state.metrics.registry.register(ServiceGauges(state))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # The server answers, /readyz with 503, while the models load in a thread.
        loading = asyncio.create_task(asyncio.to_thread(start_models, state))
        await asyncio.to_thread(state.artifacts.recover)
        await asyncio.to_thread(state.jobs.start)
        yield
        state.readiness.draining.set()
        await asyncio.to_thread(state.jobs.stop)
        await loading
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
        responses=problem_details.ANSWERS,
    )
    app.state.segcal = state
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
                REQUEST_ID,
                "traceparent",
                "tracestate",
            ],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(ProblemMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestLogMiddleware, trace_source=tracing.source)
    for routes in (segment, results, calibrators, calibrate):
        app.include_router(routes.router)
    system.install(app)
    problem_details.install(app)
    return app


def run(settings: Settings, host: str, port: int) -> None:
    """Build the application and serve it until a signal."""
    configure_logging(settings.log_format)
    server.serve(create_app(settings), host, port)


def start_models(state: State) -> None:
    """Load the models at the start; a failure is the reason for which the service is not ready."""
    try:
        load_models(state)
    except Exception as error:
        log.exception("loading models failed")
        state.readiness.reason = f"loading models failed ({type(error).__name__}), see the log"


def load_models(state: State) -> LoadReport:
    """Load and warm up new and changed models, then serve them; at the start these are all.

    Running requests keep the models that they began with. One call runs at a time.
    """
    with state.readiness.loading:
        served = state.readiness.segmenter
        predictors, report = open_models(state, {} if served is None else served.predictors)
        state.readiness.refused = dict(report.refused)
        if not predictors:
            state.readiness.reason = f"no model can be served: {report.refused}"
            log.error(state.readiness.reason)
            return report
        segmenter = Segmenter(
            predictors,
            state.settings.default_model,
            state.artifacts,
            state.settings.max_pixels,
            RowWorkers(state.settings.threads, state.admission.active_requests),
            state.drift,
            state.decoders,
            measure_memory(state.settings, predictors, report, served),
        )
        try:
            segmenter.warm_up()
        except Exception:  # a request that fails in the same way reports it
            log.exception("warming up failed")
        state.readiness.segmenter = segmenter
        return report


def measure_memory(
    settings: Settings,
    predictors: dict[str, Predictor],
    report: LoadReport,
    served: Segmenter | None,
) -> MemoryBudget:
    """Measure the models that were loaded; results and uploads have a part of the budget."""
    own = settings.result_bytes + settings.upload_buffer_bytes
    known = {} if served is None or served.memory is None else served.memory.per_pixel
    budget = MemoryBudget.measured(
        {name: predictors[name] for name in report.loaded},
        settings.memory_bytes - own,
        max_concurrent_requests(settings),
        attempts=1 if served is None else RELOAD_ATTEMPTS,
    )
    kept = {name: each for name, each in known.items() if name in predictors}
    return replace(budget, per_pixel={**kept, **budget.per_pixel})


def open_models(
    state: State, current: Mapping[str, Predictor]
) -> tuple[dict[str, Predictor], LoadReport]:
    """Load the model folders that `current` does not hold; return predictors and the report."""
    settings = state.settings

    def open_folder(folder: ModelFolder) -> Predictor:
        predictor = open_predictor(
            folder, settings.device, settings.threads, state.admission.active_requests
        )
        for warning in predictor.warnings:
            log.warning("model %s: %s", folder.card.name, warning)
        return predictor

    paths = model_folders(settings.models_dir)
    predictors, report = load_folders(paths, current, open_folder, settings.default_model)
    for name, reason in report.refused.items():
        log.warning("refused model %s: %s", name, reason)
        # Clients read it in /models, so that paths are given below the folder of models.
        report.refused[name] = reason.replace(f"{settings.models_dir}/", "")
    # Threads of concurrent torch calls wait for each other by spinning; ONNX Runtime has its own.
    in_torch = any(p.folder.path.suffix != ".onnx" for p in predictors.values())
    torch.set_num_threads(settings.threads if in_torch else 1)
    return predictors, report


def max_concurrent_requests(settings: Settings) -> int:
    """Return the number of requests that may run concurrently."""
    on_gpu = settings.device != "cpu" and nvidia_device_present()
    return GPU_WORKERS if on_gpu else WORKERS


def model_folders(models_dir: Path) -> list[Path]:
    """List the models directory's folders, sorted by name, without hidden ones."""
    if not models_dir.is_dir():
        return []
    return sorted(p for p in models_dir.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_models(settings: Settings) -> None:
    """Raise SettingsError without a model folder, or for a default model that does not exist."""
    names = [path.name for path in model_folders(settings.models_dir)]
    if not names:
        raise SettingsError(
            f"SEGCAL_MODELS_DIR: expected a folder of models, got none in {settings.models_dir}"
        )
    if settings.default_model not in (None, *names):
        raise SettingsError(
            f"SEGCAL_DEFAULT_MODEL: expected one of {names}, got {settings.default_model!r}"
        )


def find_model(settings: Settings, name: str | None) -> ModelFolder:
    """Read one model's folder by name, or the default or only one; raises SettingsError."""
    check_models(settings)
    folders = {path.name: path for path in model_folders(settings.models_dir)}
    chosen = name or settings.default_model
    if chosen is None:
        chosen = default_name({n: read_model_folder(path) for n, path in folders.items()}, None)
    if chosen not in folders:
        raise SettingsError(f"--model: expected one of {sorted(folders)}, got {chosen!r}")
    return read_model_folder(folders[chosen])
