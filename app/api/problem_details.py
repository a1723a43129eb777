"""Error responses as `application/problem+json` (RFC 9457), for errors of all layers."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Mount
from starlette.types import Receive, Scope, Send

from app.api.metrics import ServiceMetrics
from app.api.openapi import PROBLEM_JSON
from app.api.request_log import request_id_header
from app.api.security import HEADERS as SECURITY_HEADERS
from app.errors import (
    ActiveCalibratorError,
    ArgumentError,
    ArtifactError,
    BusyError,
    ConflictError,
    InputError,
    MediaTypeError,
    NotFoundError,
    SegcalError,
    StorageError,
    TooLargeError,
    TooSlowError,
    UnauthorizedError,
    UnavailableError,
    UpstreamError,
)
from app.storage.files import is_full

log = logging.getLogger(__name__)

RETRY_AFTER_S = "1"
ERROR_KEY_PATHS = ("/v2", "/huggingface")
ROUTED_METHODS = ("GET", "POST", "DELETE")

# An error has the status of the first class in its method resolution order that is listed.
STATUS: dict[type[BaseException], int] = {
    SegcalError: 500,
    InputError: 400,
    UnauthorizedError: 401,
    NotFoundError: 404,
    TooSlowError: 408,
    ConflictError: 409,
    ArtifactError: 409,  # the same request succeeds once the version is restored
    TooLargeError: 413,
    MediaTypeError: 415,
    ArgumentError: 422,
    BusyError: 429,
    UnavailableError: 503,
    UpstreamError: 503,
    ActiveCalibratorError: 503,
    StorageError: 507,
}
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    429: {"Retry-After": RETRY_AFTER_S},
    503: {"Retry-After": RETRY_AFTER_S},
}


class ProblemResponse(JSONResponse):
    """A problem, with its detail also as `error` on the paths of protocols whose clients read it.

    The path is that of the request that the response is sent for, so that errors of all layers
    have the key.
    """

    def __init__(self, content: dict[str, object], status: int, headers: dict[str, str]) -> None:
        super().__init__(content, status, headers=headers, media_type=PROBLEM_JSON)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the problem."""
        if scope.get("path", "").startswith(ERROR_KEY_PATHS):
            self.body = self.render({**self._content, "error": self._content["detail"]})
            self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def problem(
    status: int,
    detail: str,
    errors: list[object] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return a problem response; `detail` has the form "expected X, got Y"."""
    title = HTTPStatus(status).phrase
    body: dict[str, object] = {
        "type": "about:blank", "title": title, "status": status, "detail": detail,
    }  # fmt: skip
    if errors is not None:
        body["errors"] = errors
    # A 500 and a rejected request line pass no middleware.
    all_headers = {**SECURITY_HEADERS, **HEADERS.get(status, {}), **(headers or {})}
    return ProblemResponse(body, status, all_headers)


def status_of(error: SegcalError) -> int:
    """Return the HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def count_rejection(request: Request, status: int, error: Exception) -> None:
    """Count a rejected request by status and class of the error."""
    metrics: ServiceMetrics = request.app.state.segcal.metrics
    metrics.rejected.labels(status, type(error).__name__).inc()


async def on_segcal_error(request: Request, error: Exception) -> JSONResponse:
    """Respond to a SegcalError with the status of its class."""
    assert isinstance(error, SegcalError)  # noqa: S101 - registered for this class only
    status = status_of(error)
    count_rejection(request, status, error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("failed: %s", error)
    errors: list[object] | None = None
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        errors = [{"msg": str(error)}]
    return problem(status, str(error), errors)


async def on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Respond with 422 to arguments that violate their schema, with 404 to such paths."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    errors = [
        {"loc": list(item["loc"][:2]), "msg": sentence(item["msg"]), "type": item["type"]}
        for item in error.errors()
    ]
    first = error.errors()[0]
    in_path = first["loc"][0] == "path"
    count_rejection(request, 404 if in_path else 422, error)
    if in_path:
        return problem(404, f"expected a path of this service, got {request.url.path[:80]}")
    where = ".".join(str(part) for part in first["loc"][:2])
    detail = f"{where}: {sentence(first['msg'])}"
    if first["type"] != "value_error":  # messages of the schemas' own validators include the input
        detail += f", got {str(first.get('input'))[:80]!r}"
    return problem(422, detail, jsonable_encoder(errors))


def sentence(message: str) -> str:
    """Remove pydantic's prefix from a validator's message."""
    return message.removeprefix("Value error, ")


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Respond to errors of the framework: unknown paths, methods, malformed forms."""
    assert isinstance(error, HTTPException)  # noqa: S101
    count_rejection(request, error.status_code, error)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.BAD_REQUEST:  # the detail is a message of the form parser
        detail = f"expected a well-formed request, got one that is not: {detail}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"expected a path of this service, got {request.url.path[:80]}"
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed = ", ".join(methods_at(request))
        detail = f"expected {allowed} here, got {request.method[:80]}"
    return problem(error.status_code, detail, headers=headers)


def methods_at(request: Request) -> list[str]:
    """List the methods allowed at a path, of all its routes; GET for static files."""
    routes = [route for route in request.app.router.routes if not isinstance(route, Mount)]

    def allows(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    allowed = [method for method in ROUTED_METHODS if allows(method)] or ["GET"]
    return [*allowed, "HEAD"] if "GET" in allowed else allowed


async def on_disconnect(request: Request, _error: Exception) -> JSONResponse:
    """Log that a client disconnected before its body was complete; nobody gets the response."""
    log.info("the client of %s %s disconnected", request.method, request.url.path)
    return problem(400, "expected a complete body, got one that breaks off")


async def on_system_error(request: Request, error: Exception) -> JSONResponse:
    """Respond with 507 to a full disk, such as that of temporary files; with 500 to the others."""
    assert isinstance(error, OSError)  # noqa: S101
    if not is_full(error):
        return await on_crash(request, error)
    count_rejection(request, HTTPStatus.INSUFFICIENT_STORAGE, error)
    log.error("no space left on %s %s", request.method, request.url.path, exc_info=error)
    return problem(507, "expected room for temporary files, got: no space left")


async def on_crash(request: Request, error: Exception) -> JSONResponse:
    """Respond with 500 to an unexpected exception; its traceback is logged only."""
    count_rejection(request, HTTPStatus.INTERNAL_SERVER_ERROR, error)
    log.error("crashed on %s %s", request.method, request.url.path, exc_info=error)
    return problem(
        500,
        "expected a response, got an internal error; see the log for details",
        headers=request_id_header(),
    )


def install(app: FastAPI) -> None:
    """Register the exception handlers."""
    app.add_exception_handler(SegcalError, on_segcal_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(OSError, on_system_error)
    app.add_exception_handler(Exception, on_crash)
