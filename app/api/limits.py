"""Nothing unbounded comes in: request bodies are counted while they stream."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem
from app.errors import TooLargeError


class BodyLimit:
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
