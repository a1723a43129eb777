"""The HTTP layer: routes, middlewares, schemas and problem details."""

from app.api.auth import admin_token
from app.api.dependencies import Admission, Readiness, State
from app.api.diagrams import Diagrams
from app.api.labelstudio.collector import Collector
from app.api.metrics import MetricsMiddleware, ServiceMetrics
from app.api.middleware import (
    BodySizeMiddleware,
    DrainBodyMiddleware,
    HeadMiddleware,
    UploadTimeoutMiddleware,
)
from app.api.security import SecurityHeadersMiddleware
from app.api.uploads import UploadBuffer

__all__ = [
    "Admission",
    "BodySizeMiddleware",
    "Collector",
    "Diagrams",
    "DrainBodyMiddleware",
    "HeadMiddleware",
    "MetricsMiddleware",
    "Readiness",
    "SecurityHeadersMiddleware",
    "ServiceMetrics",
    "State",
    "UploadBuffer",
    "UploadTimeoutMiddleware",
    "admin_token",
]
