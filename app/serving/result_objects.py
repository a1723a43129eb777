"""Keep results in memory, and in a bucket that all replicas read.

A replica answers for its own results from memory, and writes a copy of each to the bucket for the
others. Writing takes place in threads of its own, while the response is encoded.
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.errors import NotFoundError, SegcalError, UnavailableError
from app.serving.result_cache import ID_PATTERN, UNKNOWN_RESULT, Result, ResultCache
from app.storage.objects import RETRY_S, Objects

log = logging.getLogger(__name__)

WRITERS = 4
WAIT_S = 1.0  # of a response for its result to be written
MOST_UNWRITTEN = 1000  # results that are written once a store that was down answers again


class ResultObjects:
    """Results by id, in memory and one object each; every replica reads all of them.

    Safe for threads. Each replica keeps its own within `max_bytes`, oldest first, and removes
    expired objects of all, so that those of a replica that has ended do not stay. While the store
    is down, own results are kept in memory and written later. `clock` returns seconds since the
    epoch.
    """

    def __init__(
        self, objects: Objects, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._objects, self._ttl_s, self._max_bytes, self._clock = objects, ttl_s, max_bytes, clock
        self._own = ResultCache(ttl_s, max_bytes, clock, self._dropped)
        self._writers = ThreadPoolExecutor(WRITERS, "results")
        self._writes: dict[str, Future[None]] = {}
        self._unwritten: deque[str] = deque(maxlen=MOST_UNWRITTEN)
        self._failed_at: float | None = None  # by the monotonic clock; None where the store answers
        self._swept_at = clock()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Count the bytes of the results of this replica, which are in memory."""
        return self._own.nbytes

    def put(self, result: Result) -> str:
        """Store a result and return its id; one above the whole budget is not stored."""
        if self._ttl_s <= 0 or result.nbytes > self._max_bytes:
            return secrets.token_hex(12)
        result_id = self._own.put(result)
        if self._is_down():
            self._unwritten.append(result_id)
        else:
            self._start_write(result_id)
        return result_id

    def wait_for(self, result_id: str) -> None:
        """Wait until a result is written, for at most `WAIT_S`; not at all while the store is down.

        A store that takes longer counts as down, so that few responses wait for it.
        """
        write = self._writes.get(result_id)
        if write is None or self._failed_at is not None:
            return
        if wait([write], WAIT_S).not_done:
            self._failed_at = time.monotonic()

    def get(self, result_id: str) -> Result:
        """Read a result; raises NotFoundError for an id that is unknown or expired.

        Raises UnavailableError for one of another replica while the store is down.
        """
        if not ID_PATTERN.fullmatch(result_id):
            raise NotFoundError(UNKNOWN_RESULT)
        with suppress(NotFoundError):
            return self._own.get(result_id)
        if self._is_down():
            raise UnavailableError(
                f"expected the object store to answer, got a failure less than {RETRY_S:g} s ago"
            )
        with self._watched():
            found = self._objects.read(object_name(result_id))
        if found is None or found.modified_at + self._ttl_s <= self._clock():
            raise NotFoundError(UNKNOWN_RESULT)
        try:
            return Result.from_arrays(load(found.data))
        except SafetensorError as error:
            raise NotFoundError(UNKNOWN_RESULT) from error

    def _is_down(self) -> bool:
        """Return whether the store failed; once in `RETRY_S` false, for one request to try it."""
        with self._lock:
            if self._failed_at is None:
                return False
            if time.monotonic() - self._failed_at < RETRY_S:
                return True
            self._failed_at = time.monotonic()
            return False

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Record whether requests to the store succeed; after a success, write what is not yet."""
        try:
            yield
        except SegcalError as error:
            if self._failed_at is None:
                log.warning("results are kept in memory alone: %s", error)
            self._failed_at = time.monotonic()
            raise
        self._failed_at = None
        with suppress(IndexError):
            while True:
                self._start_write(self._unwritten.popleft())

    def _start_write(self, result_id: str) -> None:
        write = self._writers.submit(self._write, result_id)
        self._writes[result_id] = write
        write.add_done_callback(lambda _: self._writes.pop(result_id, None))

    def _write(self, result_id: str) -> None:
        """Write a result, unless it was dropped meanwhile, and remove expired objects."""
        try:
            data = save(self._own.get(result_id).to_arrays())
        except NotFoundError:
            return
        try:
            with self._watched():
                self._objects.create(object_name(result_id), data)
            self._sweep()
        except SegcalError:
            self._unwritten.append(result_id)

    def _dropped(self, result_id: str) -> None:
        """Delete the object of a result that has left the memory; while down, it expires."""
        if self._failed_at is None:
            self._writers.submit(self._delete, result_id)

    def _delete(self, result_id: str) -> None:
        with suppress(SegcalError), self._watched():
            self._objects.delete(object_name(result_id))

    def _sweep(self) -> None:
        """Remove expired objects, at most once in a quarter of the time for which they are kept."""
        now = self._clock()
        with self._lock:
            if now - self._swept_at < self._ttl_s / 4:
                return
            self._swept_at = now
        with suppress(SegcalError), self._watched():
            for name, modified_at in self._objects.modified_at("").items():
                if modified_at + self._ttl_s <= now:
                    self._objects.delete(name)


def object_name(result_id: str) -> str:
    """Return the name of a result's object."""
    return f"{result_id}.safetensors"
