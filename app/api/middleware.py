"""HEAD wherever GET is: the same headers, and no body (RFC 9110, section 9.3.2).

A refusal must reach its caller: what it is still sending is read for a moment first.

A server that answers and closes while the body is on its way resets the connection, and the caller
sees a broken pipe in place of the answer.

Nothing unbounded comes in: request bodies are counted while they stream.

A body that trickles in must not hold a place for ever: it comes at a least pace.
"""

import time
from collections.abc import Mapping

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problem_details import problem
from app.errors import TooLargeError, TooSlowError


class HeadMiddleware:
    """Lets the routes take a HEAD for a GET, and keeps their body back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # The answer ends here, even one that goes on for as long as a fit does.
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, headers_only)
        finally:
            scope["route"] = asked.get("route")  # for who counts requests by it


DRAIN_BYTES = 4 << 20
DRAIN_S = 2.0
FIRST_ERROR = 400


class DrainBodyMiddleware:
    """Before an error is answered, reads and forgets the rest of the body, within bounds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` to know whether the body was read, and `send` to read it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        # A caller that waits for leave to send sends nothing once it is refused.
        waits = headers.get(b"expect", b"").lower() == b"100-continue"
        unread = not waits and (b"content-length" in headers or b"transfer-encoding" in headers)

        async def watched() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def drain(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= FIRST_ERROR:
                seen = 0
                with anyio.move_on_after(DRAIN_S):
                    while unread and seen < DRAIN_BYTES:
                        seen += len((await watched()).get("body", b""))
            await send(message)

        await self._app(scope, watched, drain)


class BodySizeMiddleware:
    """Refuses bodies above `max_bytes` with 413, by their declared length or as they come.

    Paths in `own` have a limit of their own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, own: Mapping[str, int] | None = None) -> None:
        self._app, self._max_bytes, self._own = app, max_bytes, own or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` so that it counts."""
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


STRIDE = 256 << 10  # bytes that a body must bring in the time it is given, or else its end


class UploadTimeoutMiddleware:
    """Refuses, with 408, a body whose next `STRIDE` bytes take longer than `timeout_s` to come.

    Only the time in which we wait for the caller counts: a slow disk of ours is no fault of theirs.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app, self._timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` so that it is timed until the body is whole."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left, stride, whole = self._timeout_s, 0, False

        async def timed() -> Message:
            nonlocal left, stride, whole
            if whole:  # what is waited for now is the caller's going away
                return await receive()
            began = time.monotonic()
            try:
                with anyio.fail_after(max(left, 0)):
                    message = await receive()
            except TimeoutError:
                raise TooSlowError(
                    f"expected the next {STRIDE} bytes of the body, or its end, within "
                    f"{self._timeout_s:g} s, got {stride} bytes"
                ) from None
            left -= time.monotonic() - began
            stride += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if stride >= STRIDE:
                left, stride = self._timeout_s, 0
            return message

        await self._app(scope, timed, send)
