"""Streaming of multipart bodies to files, one for each field."""

import re
import shutil
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ArgumentError, MediaTypeError, StorageError, UndecodableError
from app.storage.files import storage

MAX_TEXT = 8192  # bytes of one text field
BATCH = 1 << 20  # bytes written by a thread at a time


class MultipartWriter:
    """Writes each file field of a body to a file named as the field; collects the text fields."""

    def __init__(
        self, boundary: bytes, folder: Path, files: Collection[str], texts: Collection[str]
    ) -> None:
        self.texts: dict[str, str] = {}
        self._folder, self._files, self._known_texts = folder, files, texts
        self._seen: set[str] = set()
        self._header_name = self._header_value = self._disposition = b""
        self._field = ""
        self._text = bytearray()
        self._file: BinaryIO | None = None
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_to_header_name,
                "on_header_value": self._add_to_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_field,
                "on_part_data": self._add_data,
                "on_part_end": self._close_field,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """Parse and write the next bytes; raises UndecodableError, ArgumentError, StorageError."""
        try:
            with storage("an upload"):
                self._parser.write(data)
        except FormParserError as error:
            raise UndecodableError(f"expected multipart/form-data, got: {error}") from error

    def finish(self) -> None:
        """Raise UndecodableError where the body ended before its last boundary."""
        if not self._ended:
            raise UndecodableError("expected a complete multipart body, got one that breaks off")

    def close(self) -> None:
        """Close the file that a failure has left open."""
        if self._file is not None:
            self._file.close()

    def _begin_part(self) -> None:
        self._header_name = self._header_value = self._disposition = b""

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _open_field(self) -> None:
        """Start the field named in the part's headers; the client's file name is ignored."""
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in (*self._files, *self._known_texts):
            raise ArgumentError(
                f"expected the fields {', '.join((*self._files, *self._known_texts))}, "
                f"got {name[:80]!r}"
            )
        if name in self._seen:
            raise ArgumentError(f"expected each field once, got {name} twice")
        self._seen.add(name)
        self._field = name
        if name in self._files:
            self._file = (self._folder / name).open("xb", buffering=0)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            view = memoryview(data)[start:end]
            while view:  # a disk that fills up writes a part
                view = view[self._file.write(view) :]
            return
        self._text += data[start:end]
        if len(self._text) > MAX_TEXT:
            raise ArgumentError(
                f"{self._field}: expected a text of at most {MAX_TEXT} bytes, got more"
            )

    def _close_field(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            return
        self.texts[self._field] = self._text.decode("utf-8", "replace")
        self._text.clear()

    def _end(self) -> None:
        self._ended = True


async def write_multipart(
    request: Request, folder: Path, files: Collection[str], texts: Collection[str]
) -> dict[str, str]:
    """Write a request's file fields to a folder and return its text fields.

    Memory stays at a few MB. After a failure the caller removes the files. Raises MediaTypeError,
    UndecodableError, ArgumentError and StorageError.
    """
    writer = MultipartWriter(boundary_of(request), folder, files, texts)
    _check_room(request, folder)
    try:
        async for batch in batches(request.stream()):
            # In a thread, since a disk may block.
            await anyio.to_thread.run_sync(writer.write, batch)
        writer.finish()
    finally:
        writer.close()
    return writer.texts


def boundary_of(request: Request) -> bytes:
    """Parse the boundary of the content type; raises MediaTypeError for any other type."""
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not re.fullmatch(rb"[\x20-\x7e]{1,70}", boundary):
        raise MediaTypeError(
            f"expected multipart/form-data with a boundary, "
            f"got {content_type[:80] or 'no content type'}"
        )
    return boundary


async def batches(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small chunks to batches of at least `BATCH` bytes, to start fewer threads."""
    batch = bytearray()
    async for chunk in stream:
        batch += chunk
        if len(batch) >= BATCH:
            yield bytes(batch)
            batch.clear()
    yield bytes(batch)


def _check_room(request: Request, folder: Path) -> None:
    """Raise StorageError where the declared length exceeds the free space."""
    declared = request.headers.get("content-length", "")
    free = shutil.disk_usage(folder).free
    if declared.isdecimal() and int(declared) > free:
        raise StorageError(f"expected room for {declared} bytes, got {free}: no space left")
