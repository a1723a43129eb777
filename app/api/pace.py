"""A body that trickles in must not hold a place for ever: it comes at a least pace."""

import time

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooSlowError

STRIDE = 256 << 10  # bytes that a body must bring in the time it is given, or else its end


class BodyPace:
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
