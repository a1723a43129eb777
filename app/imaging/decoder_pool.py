"""Decode untrusted images within a time limit: small ones here, others in child processes.

Only a process can be stopped while a C library decodes. A child also keeps a decoder's crash and
its memory out of the service.
"""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from queue import Empty, LifoQueue
from typing import BinaryIO, cast

import numpy as np

from app.deadline import UNLIMITED, Deadline
from app.errors import InputError, TooLargeError, UndecodableError
from app.imaging.decode import ImageArray, open_image
from app.imaging.tiff_bands import UNSCALED, Scaling

# An image of less work is decoded in at most a second by the calling thread, without the
# milliseconds that its pixels take through a pipe. The work is known before Pillow reads the file,
# except that of a TIFF's directories.
SMALL_WORK = 1 << 24
SMALL_TIFF_BYTES = 1 << 20
TIFF_STARTS = (b"II", b"MM")
DECODE_S = 20.0  # a lossless WebP of 50 megapixels takes 2 to 4 s
ERRORS: dict[str, type[InputError]] = {
    kind.__name__: kind for kind in (TooLargeError, UndecodableError)
}


class _Child:
    """A process that runs `decode_worker`; it exits when its input closes."""

    def __init__(self) -> None:
        # In its own process group: an interrupt from the terminal is for the server.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.imaging.decode_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._complete = True  # the last response was read to its end

    @property
    def usable(self) -> bool:
        """True where the process waits for a request."""
        return self._complete and self._process.poll() is None

    def decode(self, data: bytes, max_pixels: int, scaling: Scaling) -> ImageArray:
        """Decode one image; raises OSError, EOFError or ValueError where the process has ended."""
        self._complete = False
        requests, responses = self._pipes()
        request = {"bytes": len(data), "max_pixels": max_pixels, **asdict(scaling)}
        requests.write(json.dumps(request).encode() + b"\n")
        requests.write(data)
        requests.flush()
        answer = json.loads(responses.readline())
        if "error" in answer:
            self._complete = True
            raise ERRORS.get(answer["error"], UndecodableError)(answer["detail"])
        pixels = np.empty((answer["height"], answer["width"], 3), np.uint8)
        if responses.readinto(pixels.data.cast("B")) != pixels.nbytes:
            raise EOFError("expected all pixels, got a part")
        self._complete = True
        return pixels

    def kill(self) -> None:
        """End the process at once; safe from any thread."""
        self._complete = False
        self._process.kill()

    def close(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        for pipe in self._pipes():
            with suppress(OSError):  # a write that the process did not read
                pipe.close()
        self._process.wait()

    def _pipes(self) -> tuple[BinaryIO, io.BufferedReader]:
        # Popen's annotations know neither that these are pipes nor how they are buffered.
        requests, responses = self._process.stdin, self._process.stdout
        return cast(BinaryIO, requests), cast(io.BufferedReader, responses)


class DecoderPool:
    """Decode images within a time limit; safe for threads.

    Children are started when needed, one for each concurrent caller, and kept.
    """

    def __init__(self, limit_s: float = DECODE_S) -> None:
        self._limit_s = limit_s
        self._idle: LifoQueue[_Child] = LifoQueue()

    def decode(
        self,
        data: bytes,
        max_pixels: int,
        deadline: Deadline = UNLIMITED,
        scaling: Scaling = UNSCALED,
    ) -> ImageArray:
        """Decode one image as `decode_image` does, within the time limit and the deadline.

        Raises TooLargeError after the time limit, and UnavailableError after the deadline.
        """
        if len(data) <= SMALL_TIFF_BYTES or not data.startswith(TIFF_STARTS):
            with open_image(data, max_pixels, scaling) as opened:
                if opened.work <= SMALL_WORK:
                    return opened.decode()
        with self._borrow() as child, deadline.stopping(child.kill):
            return self._decode_in(child, data, max_pixels, scaling)

    def close(self) -> None:
        """End all children."""
        while child := self._take_idle():
            child.close()

    def _decode_in(
        self, child: _Child, data: bytes, max_pixels: int, scaling: Scaling
    ) -> ImageArray:
        expired = threading.Event()

        def end() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(self._limit_s, end)
        timer.start()
        try:
            return child.decode(data, max_pixels, scaling)
        except (OSError, EOFError, ValueError) as error:
            if expired.is_set():
                raise TooLargeError(
                    f"expected an image that is decoded within {self._limit_s:g} s, "
                    "got one that takes longer"
                ) from error
            raise UndecodableError("expected an image, got one that ends its decoder") from error
        finally:
            timer.cancel()
            timer.join()

    @contextmanager
    def _borrow(self) -> Iterator[_Child]:
        """Borrow an idle child or start one; afterwards it is kept if it still runs."""
        child = self._take_idle() or _Child()
        try:
            yield child
        finally:
            if child.usable:
                self._idle.put(child)
            else:
                child.close()

    def _take_idle(self) -> _Child | None:
        """Remove and return an idle child, or None; drop those that ended meanwhile."""
        while True:
            try:
                child = self._idle.get_nowait()
            except Empty:
                return None
            if child.usable:
                return child
            child.close()
