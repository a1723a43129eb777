"""Bodies of requests in memory: a bounded buffer, and the parser of forms."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import BusyError, UnavailableError


class UploadBuffer:
    """Memory for the bodies of requests, bounded over all requests."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left = max_bytes
        self._receiving: set[anyio.CancelScope] = set()
        self._reason = ""

    @property
    def nbytes(self) -> int:
        """Count the bytes of the bodies that are being received or waiting."""
        return self._max_bytes - self._left

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytearray]:
        """Receive a whole body; its bytes count until the block ends.

        Raises BusyError where the buffer is full, UnavailableError once `expire` is called.
        """
        body = bytearray()
        taken = 0
        scope = anyio.CancelScope()
        self._receiving.add(scope)
        try:
            with scope:
                async for chunk in request.stream():
                    self._take(len(chunk))
                    taken += len(chunk)
                    body += chunk
            if scope.cancelled_caught:
                raise UnavailableError(self._reason)
            yield body
        finally:
            self._receiving.discard(scope)
            self._left += taken

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Count the bytes of a received body until the block ends; raises BusyError."""
        self._take(size)
        try:
            yield
        finally:
            self._left += size

    def _take(self, size: int) -> None:
        if size > self._left:
            raise BusyError(
                f"expected uploads of at most {self._max_bytes} bytes at once, got more"
            )
        self._left -= size

    def expire(self, reason: str) -> None:
        """End the uploads that are being received, with 503."""
        self._reason = reason
        for scope in self._receiving:
            scope.cancel()


@asynccontextmanager
async def parsed_form(
    request: Request, body: bytearray, *, max_files: int, max_fields: int
) -> AsyncIterator[FormData]:
    """Parse a multipart body for the block; raises HTTPException 400 for a malformed one."""

    async def stream() -> AsyncGenerator[bytes]:
        yield bytes(body)
        body.clear()

    parser = MultiPartParser(request.headers, stream(), max_files=max_files, max_fields=max_fields)
    # No temporary files, as the whole body is in memory already; their disk may be full.
    setattr(parser, "spool_max_size", 1 << 62)  # noqa: B010 - starlette's name
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    try:
        yield form
    finally:
        await form.close()
        for file in getattr(parser, "_files_to_close_on_error", ()):  # of parts without an end
            file.close()
