"""Cache results for a limited time and within a byte budget."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.calibration.predictions import Prediction
from app.errors import NotFoundError

UNKNOWN_RESULT = "expected the id of a recent answer, got one that is unknown or expired"


@dataclass(frozen=True)
class Result:
    """The cached data of one response; `upload` is the encoded image, for overlays."""

    model: str
    upload: bytes
    prediction: Prediction
    palette: list[tuple[int, int, int]]

    @property
    def nbytes(self) -> int:
        """Count the bytes of the upload, the mask and the confidence."""
        return len(self.upload) + self.prediction.mask.nbytes + self.prediction.confidence.nbytes


class Results(Protocol):
    """Results by id, for a limited time and within a byte budget; safe for threads."""

    @property
    def nbytes(self) -> int:
        """Count the bytes of the stored results."""

    def put(self, result: Result) -> str:
        """Store a result and return its id."""

    def get(self, result_id: str) -> Result:
        """Return a result; raises NotFoundError for an id that is unknown or expired."""


class ResultCache:
    """Cache results by id; a full budget evicts the oldest first. Safe for threads.

    `clock` returns seconds.
    """

    def __init__(
        self, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s, self._max_bytes, self._clock = ttl_s, max_bytes, clock
        self._entries: OrderedDict[str, tuple[float, Result]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Count the bytes of the stored results."""
        return self._bytes

    def put(self, result: Result) -> str:
        """Store a result and return its id; a result above the whole budget is not stored."""
        result_id = secrets.token_hex(12)
        with self._lock:
            self._drop_expired()
            while self._entries and self._bytes + result.nbytes > self._max_bytes:
                self._drop_oldest()
            if result.nbytes <= self._max_bytes:
                self._entries[result_id] = (self._clock() + self._ttl_s, result)
                self._bytes += result.nbytes
        return result_id

    def get(self, result_id: str) -> Result:
        """Return a result; raises NotFoundError for an id that is unknown or expired."""
        with self._lock:
            self._drop_expired()
            if result_id in self._entries:
                return self._entries[result_id][1]
        raise NotFoundError(UNKNOWN_RESULT)

    def _drop_expired(self) -> None:
        while self._entries and next(iter(self._entries.values()))[0] <= self._clock():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, result) = self._entries.popitem(last=False)
        self._bytes -= result.nbytes
