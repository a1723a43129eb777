"""Nothing unbounded comes in: request bodies are counted while they stream."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem
from app.errors import TooLargeError


class BodyLimit:
    """Refuses bodies above `max_bytes` with 413, by their declared length or as they come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `receive` so that it counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await problem(413, self._sentence(int(declared)))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise TooLargeError(self._sentence(received))
            return message

        await self._app(scope, counted, send)

    def _sentence(self, size: int) -> str:
        return f"expected a body of at most {self._max_bytes} bytes, got {size} or more"
