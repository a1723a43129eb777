"""The HTTP layer: routes, middlewares, schemas and problem details."""

from app.api.auth import admin_token
from app.api.dependencies import Admission, Readiness, State, alone
from app.api.diagrams import Diagrams
from app.api.gauges import ProcessGauges, ServiceGauges
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
from app.api.request_log import REQUEST_ID, RequestLogMiddleware, configure_logging
from app.api.security import SecurityHeadersMiddleware
from app.api.shared_metrics import SharedMetrics, publish_regularly
from app.api.tracing import install_tracing
from app.api.uploads import UploadBuffer

__all__ = [
    "REQUEST_ID",
    "Admission",
    "BodySizeMiddleware",
    "Collector",
    "Diagrams",
    "DrainBodyMiddleware",
    "HeadMiddleware",
    "MetricsMiddleware",
    "ProblemMiddleware",
    "ProcessGauges",
    "Readiness",
    "RequestLogMiddleware",
    "SecurityHeadersMiddleware",
    "ServiceGauges",
    "ServiceMetrics",
    "SharedMetrics",
    "State",
    "UploadBuffer",
    "UploadTimeoutMiddleware",
    "admin_token",
    "alone",
    "configure_logging",
    "install_tracing",
    "load_models",
    "publish_regularly",
    "retry_remote_models",
    "start_models",
]
