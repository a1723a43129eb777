"""Responses whose large bodies wait for slow clients on disk instead of in memory."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack

import anyio.to_thread
from fastapi import Response
from starlette.types import Receive, Scope, Send

from app.storage.files import storage

# Larger bodies are sent from a file, in pieces of this size: the connection holds one piece, which
# a client must read within SEGCAL_DOWNLOAD_TIMEOUT_S.
PIECE = 256 << 10


def respond(body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response; blocks for a large body. Raises StorageError."""
    kind = Response if len(body) <= PIECE else FileBodyResponse
    return kind(body, headers=headers, media_type=media_type)


class FileBodyResponse(Response):
    """A response whose body lies in an unnamed temporary file until it is sent."""

    def __init__(self, body: bytes, headers: Mapping[str, str] | None, media_type: str) -> None:
        super().__init__(
            headers={**(headers or {}), "Content-Length": str(len(body))}, media_type=media_type
        )
        with storage("a response"), ExitStack() as stack:
            self._file = stack.enter_context(tempfile.TemporaryFile())
            self._file.write(body)
            self._file.seek(0)
            stack.pop_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file's content and delete it."""
        del scope, receive
        with self._file as file:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            while piece := await anyio.to_thread.run_sync(file.read, PIECE):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
