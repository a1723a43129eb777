"""Earlier answers, kept for a while and within a byte budget."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.calibration.predictions import Prediction
from app.errors import NotFoundError


@dataclass(frozen=True)
class Result:
    """What is kept of one answer; the upload stays encoded until an overlay is asked for."""

    model: str
    upload: bytes
    prediction: Prediction
    palette: list[tuple[int, int, int]]

    @property
    def nbytes(self) -> int:
        """Count the bytes this result holds on to."""
        return len(self.upload) + self.prediction.mask.nbytes + self.prediction.confidence.nbytes


class ResultCache:
    """Results by id; the oldest go first when the budget is full. Safe for threads."""

    def __init__(
        self, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s, self._max_bytes, self._clock = ttl_s, max_bytes, clock
        self._entries: OrderedDict[str, tuple[float, Result]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, result: Result) -> str:
        """Keep a result and name it; one beyond the whole budget is named but not kept."""
        name = secrets.token_hex(12)
        with self._lock:
            self._drop_expired()
            while self._entries and self._bytes + result.nbytes > self._max_bytes:
                self._drop_oldest()
            if result.nbytes <= self._max_bytes:
                self._entries[name] = (self._clock() + self._ttl_s, result)
                self._bytes += result.nbytes
        return name

    def get(self, name: str) -> Result:
        """Find a result; raises NotFoundError when it was never there or is gone."""
        with self._lock:
            self._drop_expired()
            if name in self._entries:
                return self._entries[name][1]
        raise NotFoundError(
            "expected the id of a recent answer, got one that is unknown or expired"
        )

    def _drop_expired(self) -> None:
        while self._entries and next(iter(self._entries.values()))[0] <= self._clock():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, result) = self._entries.popitem(last=False)
        self._bytes -= result.nbytes
