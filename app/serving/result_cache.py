"""Cache results for a limited time and within a byte budget."""

import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.calibration.predictions import Prediction
from app.errors import NotFoundError

ID_PATTERN = re.compile(r"[0-9a-f]{24}")
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

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the data as arrays, for a file or an object."""
        return {
            "model": np.frombuffer(self.model.encode(), np.uint8),
            "upload": np.frombuffer(self.upload, np.uint8),
            "mask": np.ascontiguousarray(self.prediction.mask),
            "confidence": np.ascontiguousarray(self.prediction.confidence),
            "palette": np.array(self.palette, np.uint8).reshape(-1, 3),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "Result":
        """Build a result from its arrays; raises NotFoundError where one is missing."""
        try:
            return cls(
                arrays["model"].tobytes().decode(),
                arrays["upload"].tobytes(),
                Prediction(arrays["mask"], arrays["confidence"]),
                [(red, green, blue) for red, green, blue in arrays["palette"].tolist()],
            )
        except KeyError as error:
            raise NotFoundError(UNKNOWN_RESULT) from error


class Results(Protocol):
    """Results by id, for a limited time and within a byte budget; safe for threads."""

    @property
    def nbytes(self) -> int:
        """Count the bytes of the stored results."""

    def put(self, result: Result) -> str:
        """Store a result and return its id."""

    async def wait_for(self, result_id: str) -> None:
        """Wait for a moment until all replicas can read a result that was put."""

    def get(self, result_id: str) -> Result:
        """Return a result; raises NotFoundError for an id that is unknown or expired.

        Raises UnavailableError where it may be in a store that can't be reached.
        """


class ResultCache:
    """Cache results by id; a full budget evicts the oldest first. Safe for threads.

    `clock` returns seconds. `on_drop` is called with the id of each result that is dropped.
    """

    def __init__(
        self,
        ttl_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        on_drop: Callable[[str], None] = lambda _result_id: None,
    ) -> None:
        self._ttl_s, self._max_bytes, self._clock = ttl_s, max_bytes, clock
        self._on_drop = on_drop
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

    async def wait_for(self, result_id: str) -> None:
        """Return at once: no other process reads the results."""

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
        result_id, (_, result) = self._entries.popitem(last=False)
        self._bytes -= result.nbytes
        self._on_drop(result_id)
