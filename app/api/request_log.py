"""Request ids and trace context; log lines as text or JSON, which hold neither bodies nor queries.

A client may send `X-Request-Id`; otherwise an id is made. The response repeats it, and every line
that is logged for the request has it, those of worker threads too.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "X-Request-Id"
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; a later version may have more fields.
TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
MAX_PATH = 200  # characters of a path in a log line
TEXT = "%(levelname)s %(name)s: %(message)s"

log = logging.getLogger("segcal.access")


@dataclass(frozen=True)
class Trace:
    """Trace id (32 hex digits) and span id (16) of a request."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class RequestContext:
    """The request for which a line is logged."""

    request_id: str
    trace: Trace | None


TraceSource = Callable[[str], Trace | None]  # of a `traceparent` header, empty without one
CONTEXT: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def parse_traceparent(value: str) -> Trace | None:
    """Parse a `traceparent` header; None for an invalid or missing one."""
    match = TRACEPARENT.fullmatch(value)
    if match is None or (match[1] == "00" and match[4]):
        return None
    if not int(match[2], 16) or not int(match[3], 16):
        return None
    return Trace(match[2], match[3])


class RequestLogMiddleware:
    """Sets the id and the trace of each request, and logs one line for each response."""

    def __init__(self, app: ASGIApp, trace_source: TraceSource = parse_traceparent) -> None:
        self._app, self._trace_source = app, trace_source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request in its context."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if WELL_FORMED.fullmatch(given) else secrets.token_hex(16)
        trace = self._trace_source(headers.get(b"traceparent", ""))
        # Not reset: the context is the request's own, and the handler of a 500 runs after this.
        CONTEXT.set(RequestContext(request_id, trace))
        started, status, size = time.perf_counter(), 500, 0

        async def watched(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (REQUEST_ID.lower().encode(), request_id.encode()),
                ]
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            _log_response(scope, status, size, time.perf_counter() - started)


def _log_response(scope: Scope, status: int, size: int, seconds: float) -> None:
    # As sent, so that it has no line break; without the query, which may hold anything.
    path = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "replace")[:MAX_PATH]
    fields = {
        "method": scope["method"],
        "path": path,
        "route": getattr(scope.get("route"), "path", None),
        "status": status,
        "bytes": size,
        "duration_ms": round(seconds * 1000, 2),
    }
    log.info(
        "%s %s %d in %.1f ms", fields["method"], path, status, seconds * 1000,
        extra={"request": fields},
    )  # fmt: skip


def request_id_header() -> dict[str, str]:
    """Return the header of a response that passes no middleware."""
    context = CONTEXT.get()
    return {} if context is None else {REQUEST_ID: context.request_id}


class TextFormatter(logging.Formatter):
    """Formats a line as text, with the id of its request."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        context = CONTEXT.get()
        suffix = "" if context is None else f" request_id={context.request_id}"
        return super().format(record) + suffix


class JsonFormatter(logging.Formatter):
    """Formats a line as one JSON object: time, level, logger, message, request and trace ids.

    The line of a response has its method, path, route, status, bytes and duration as well, and one
    with an exception its traceback as `error`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = CONTEXT.get()
        if context is not None:
            line["request_id"] = context.request_id
            if context.trace is not None:
                line |= {"trace_id": context.trace.trace_id, "span_id": context.trace.span_id}
        line |= getattr(record, "request", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(form: Literal["text", "json"]) -> None:
    """Write the log of the process to standard error, one line or JSON object for each record."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It logs every request to a remote model's server, with the address.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
