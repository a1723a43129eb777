"""Keep results in memory, and in a bucket that all replicas read.

A replica answers for its own results from memory, and writes a copy of each to the bucket for the
others. Writing takes place in threads of its own, while the response is encoded.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.errors import NotFoundError, SegcalError, UnavailableError
from app.serving.result_cache import ID_PATTERN, UNKNOWN_RESULT, Result, ResultCache
from app.storage.objects import Objects

log = logging.getLogger(__name__)

WRITERS = 4
PROBE = "probe"  # name of an object that need not exist
RETRY_S = 1.0  # between attempts while the store is down
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
        self._swept_at = clock()
        self._lock = threading.Lock()  # of what follows
        self._down = False
        self._unwritten: deque[str] = deque(maxlen=MOST_UNWRITTEN)

    @property
    def nbytes(self) -> int:
        """Count the bytes of the results of this replica, which are in memory."""
        return self._own.nbytes

    def put(self, result: Result) -> str:
        """Store a result and return its id; one above the whole budget is not stored."""
        if self._ttl_s <= 0 or result.nbytes > self._max_bytes:
            return secrets.token_hex(12)
        result_id = self._own.put(result)
        with self._lock:
            if self._down:
                self._unwritten.append(result_id)
                return result_id
        self._start_write(result_id)
        return result_id

    async def wait_for(self, result_id: str) -> None:
        """Wait until a result is written, for at most `WAIT_S`; not at all while the store is down.

        A store that takes longer counts as down, so that few responses wait for it.
        """
        write = self._writes.get(result_id)
        if write is None or self._down:
            return
        _, late = await asyncio.wait([asyncio.wrap_future(write)], timeout=WAIT_S)
        if late:
            self._set_down(f"expected a result to be written within {WAIT_S:g} s, got no answer")

    def get(self, result_id: str) -> Result:
        """Read a result; raises NotFoundError for an id that is unknown or expired.

        Raises UnavailableError for one of another replica while the store is down.
        """
        if not ID_PATTERN.fullmatch(result_id):
            raise NotFoundError(UNKNOWN_RESULT)
        with suppress(NotFoundError):
            return self._own.get(result_id)
        if self._down:
            raise UnavailableError("expected the object store to answer, got a failure just now")
        try:
            found = self._objects.read(object_name(result_id))
        except SegcalError as error:
            self._set_down(str(error))
            raise
        if found is None or found.modified_at + self._ttl_s <= self._clock():
            raise NotFoundError(UNKNOWN_RESULT)
        try:
            return Result.from_arrays(load(found.data))
        except SafetensorError as error:
            raise NotFoundError(UNKNOWN_RESULT) from error

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
            self._objects.create(object_name(result_id), data)
        except SegcalError as error:
            with self._lock:
                self._unwritten.append(result_id)
            self._set_down(str(error))
            return
        self._sweep()

    def _dropped(self, result_id: str) -> None:
        """Delete the object of a result that has left the memory; while down, it expires."""
        if not self._down:
            self._writers.submit(self._delete, object_name(result_id))

    def _delete(self, name: str) -> None:
        try:
            self._objects.delete(name)
        except SegcalError as error:
            self._set_down(str(error))

    def _sweep(self) -> None:
        """Remove expired objects, at most once in a quarter of the time for which they are kept."""
        now = self._clock()
        with self._lock:
            if now - self._swept_at < self._ttl_s / 4:
                return
            self._swept_at = now
        try:
            objects = self._objects.modified_at("")
        except SegcalError as error:
            self._set_down(str(error))
            return
        for name, modified_at in objects.items():
            if modified_at + self._ttl_s <= now and not self._down:
                self._delete(name)

    def _set_down(self, reason: str) -> None:
        """Let no request wait for the store, until it answers an attempt of a thread."""
        with self._lock:
            if self._down:
                return
            self._down = True
        log.warning("results are kept in memory alone: %s", reason)
        self._try_later()

    def _try_later(self) -> None:
        timer = threading.Timer(RETRY_S, self._try_again)
        timer.daemon = True
        timer.start()

    def _try_again(self) -> None:
        """Read an object, and write what could not be written once the store answers."""
        try:
            self._objects.read(PROBE)
        except Exception as error:  # whatever it is, the next attempt may succeed
            log.info("the object store does not answer yet: %s", error)
            self._try_later()
            return
        with self._lock:
            self._down = False
            unwritten = list(self._unwritten)
            self._unwritten.clear()
        for result_id in unwritten:
            self._start_write(result_id)


def object_name(result_id: str) -> str:
    """Return the name of a result's object."""
    return f"{result_id}.safetensors"
