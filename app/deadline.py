"""Deadlines: end the work of one request from another thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import UnavailableError


class Deadline:
    """The end of one request's work; safe for threads.

    A thread can't be stopped from outside, so the work calls `check` between its steps and runs
    what may take long, a network or a child process, under `stopping`.
    """

    def __init__(self) -> None:
        self._reason = ""
        self._stops: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def expire(self, reason: str) -> None:
        """End the work for a reason, "expected X, got Y"; a second call changes nothing."""
        with self._lock:
            self._reason = self._reason or reason
            for stop in self._stops:  # quick, and never after its block has ended
                stop()

    def check(self) -> None:
        """Raise UnavailableError once the deadline has expired."""
        if self._reason:
            raise UnavailableError(self._reason)

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop`, from another thread, if the deadline expires while the block runs.

        Raises UnavailableError then, whatever the block raises.
        """
        with self._lock:
            self._stops.append(stop)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)
            self.check()


UNLIMITED = Deadline()  # for work outside requests; never expires
