"""Keep results in files of one folder, which several server processes share."""

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from app.errors import NotFoundError
from app.serving.result_cache import ID_PATTERN, UNKNOWN_RESULT, Result

log = logging.getLogger(__name__)


class ResultFiles:
    """Results by id, one file each; every process reads all of them. Safe for threads.

    Each process keeps its own results within `max_bytes`, oldest first, and removes expired files
    of all, so that those of a process that has ended do not stay. `clock` returns seconds since
    the epoch, as files' times are.
    """

    def __init__(
        self, folder: Path, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._ttl_s, self._max_bytes, self._clock = folder, ttl_s, max_bytes, clock
        self._own: OrderedDict[str, int] = OrderedDict()  # bytes by id, oldest first
        self._bytes = 0
        self._swept_at = clock()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        """Count the bytes of the results that this process keeps."""
        return self._bytes

    def put(self, result: Result) -> str:
        """Store a result and return its id; one above the whole budget is not stored.

        Where the disk is full it is not stored either: the response does not depend on it.
        """
        result_id = secrets.token_hex(12)
        if result.nbytes > self._max_bytes:
            return result_id
        with self._lock:
            self._sweep()
            while self._own and self._bytes + result.nbytes > self._max_bytes:
                oldest, size = self._own.popitem(last=False)
                self._bytes -= size
                self._path(oldest).unlink(missing_ok=True)
            self._own[result_id] = result.nbytes
            self._bytes += result.nbytes
        try:
            self._write(result_id, result)
        except (OSError, SafetensorError) as error:
            log.warning("a result could not be kept: %s", error)
        return result_id

    async def wait_for(self, result_id: str) -> None:
        """Return at once: a file is written before its id is known."""

    def get(self, result_id: str) -> Result:
        """Read a result; raises NotFoundError for an id that is unknown or expired."""
        if not ID_PATTERN.fullmatch(result_id):
            raise NotFoundError(UNKNOWN_RESULT)
        path = self._path(result_id)
        try:
            if path.stat().st_mtime + self._ttl_s <= self._clock():
                raise NotFoundError(UNKNOWN_RESULT)
            return Result.from_arrays(load_file(path))
        except (OSError, SafetensorError) as error:
            raise NotFoundError(UNKNOWN_RESULT) from error

    def _path(self, result_id: str) -> Path:
        return self._folder / f"{result_id}.safetensors"

    def _write(self, result_id: str, result: Result) -> None:
        """Write a file under another name first, so that no process reads a part of it."""
        temporary = self._folder / f"{result_id}.tmp"
        try:
            save_file(result.to_arrays(), temporary)
            temporary.rename(self._path(result_id))
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove expired files, at most once in a quarter of the time for which they are kept.

        Folders are not results: they are the drift windows of the processes.
        """
        now = self._clock()
        if now - self._swept_at < self._ttl_s / 4:
            return
        self._swept_at = now
        for path in self._folder.iterdir():
            if path.is_dir():
                continue
            with suppress(FileNotFoundError):  # another process removes it
                if path.stat().st_mtime + self._ttl_s <= now:
                    path.unlink()
                    self._bytes -= self._own.pop(path.stem, 0)
