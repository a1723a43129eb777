"""A refusal must reach its caller: what it is still sending is read for a moment first.

A server that answers and closes while the body is on its way resets the connection, and the caller
sees a broken pipe in place of the answer.
"""

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_BYTES = 4 << 20
LINGER_S = 2.0
FIRST_ERROR = 400


class Linger:
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

        async def lingering(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= FIRST_ERROR:
                seen = 0
                with anyio.move_on_after(LINGER_S):
                    while unread and seen < LINGER_BYTES:
                        seen += len((await watched()).get("body", b""))
            await send(message)

        await self._app(scope, watched, lingering)
