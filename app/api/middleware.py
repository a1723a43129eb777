"""Middlewares: HEAD requests, body size, upload timeout, draining of rejected bodies."""

import time
from collections.abc import Mapping

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problem_details import problem
from app.errors import TooLargeError, TooSlowError

DRAIN_BYTES = 4 << 20
DRAIN_S = 2.0
FIRST_ERROR = 400
STRIDE = 256 << 10  # bytes of a body that must arrive within the upload timeout


class HeadMiddleware:
    """Routes HEAD as GET and omits the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # Ends an event stream at once, which otherwise lasts as long as its fit.
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        get = {**scope, "method": "GET"}
        try:
            await self._app(get, receive, headers_only)
        finally:
            scope["route"] = get.get("route")  # read by MetricsMiddleware


class ProblemMiddleware:
    """Replaces the plain text of error responses of libraries by a problem (RFC 9457).

    They are those of a malformed or unsatisfiable `Range` and of a rejected CORS preflight.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `send` to hold the start of such a response until its text is known."""
        replaced: Message | None = None

        async def rewritten(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", ()))
                plain = headers.get(b"content-type", b"").startswith(b"text/plain")
                if plain and message["status"] >= FIRST_ERROR:
                    replaced = message
                    return
            if replaced is None:
                await send(message)
            elif not message.get("more_body", False):
                text = message.get("body", b"").decode("utf-8", "replace")[:200]
                kept = {
                    name.decode(): value.decode("latin-1")
                    for name, value in replaced["headers"]
                    if name not in (b"content-type", b"content-length")
                }
                detail = f"expected a well-formed request, got one that is not: {text}"
                await problem(replaced["status"], detail, headers=kept)(scope, receive, send)

        await self._app(scope, receive, rewritten)


class DrainBodyMiddleware:
    """Drains the request body, at most `DRAIN_BYTES` or `DRAIN_S`, before an error response.

    A server that responds and closes while the body is being sent resets the connection: the
    client would see the reset instead of the error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` to track whether the body was read, and `send` to drain it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        # With `Expect: 100-continue` a rejected client sends no body.
        waits = headers.get(b"expect", b"").lower() == b"100-continue"
        unread = not waits and (b"content-length" in headers or b"transfer-encoding" in headers)

        async def watched() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def drain(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= FIRST_ERROR:
                drained = 0
                with anyio.move_on_after(DRAIN_S):
                    while unread and drained < DRAIN_BYTES:
                        drained += len((await watched()).get("body", b""))
            await send(message)

        await self._app(scope, watched, drain)


class BodySizeMiddleware:
    """Rejects bodies above `max_bytes` with 413, by declared length or while they stream.

    `own` maps paths to limits of their own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, own: Mapping[str, int] | None = None) -> None:
        self._app, self._max_bytes, self._own = app, max_bytes, own or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` to count the body's bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._own.get(scope["path"], self._max_bytes)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            await problem(413, _sentence(limit, int(declared)))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise TooLargeError(_sentence(limit, received))
            return message

        await self._app(scope, counted, send)


def _sentence(limit: int, size: int) -> str:
    return f"expected a body of at most {limit} bytes, got {size} or more"


class UploadTimeoutMiddleware:
    """Rejects with 408 a body whose next `STRIDE` bytes take longer than `timeout_s`.

    Only the time spent waiting for the client counts, not that of writing to disk.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app, self._timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` to time it until the body is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left, stride, complete = self._timeout_s, 0, False

        async def timed() -> Message:
            nonlocal left, stride, complete
            if complete:  # the next message is the client's disconnect
                return await receive()
            started = time.monotonic()
            try:
                with anyio.fail_after(max(left, 0)):
                    message = await receive()
            except TimeoutError:
                raise TooSlowError(
                    f"expected the next {STRIDE} bytes of the body, or its end, within "
                    f"{self._timeout_s:g} s, got {stride} bytes"
                ) from None
            left -= time.monotonic() - started
            stride += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if stride >= STRIDE:
                left, stride = self._timeout_s, 0
            return message

        await self._app(scope, timed, send)
