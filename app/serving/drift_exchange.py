"""Exchange drift windows with the other replicas of a service.

Each replica publishes its window every `PUBLISH_S` seconds, and adds those of the others to its
own. A window that is older than `MAX_AGE_S` is that of a replica that has ended, or can't publish.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import ValidationError

from app.errors import SegcalError
from app.schemas.drift import DriftWindow, DriftWindows
from app.serving.drift_monitor import DriftMonitor
from app.storage.publications import Publications

log = logging.getLogger(__name__)

PUBLISH_S = 10.0
MAX_AGE_S = 60.0  # six publications
REMOVE_S = 600.0  # age from which a window is deleted by any replica
STOP_S = 2.0  # of a shutdown


class DriftExchange:
    """Exchanges the windows of a monitor with those of the other replicas.

    While the documents can't be reached, the others' windows stay as they were read last, for
    `MAX_AGE_S`.
    """

    def __init__(self, monitor: DriftMonitor, publications: Publications) -> None:
        self._monitor, self._publications = monitor, publications
        self._replica = secrets.token_hex(8)
        self._stopping = threading.Event()
        self._exchanged_at = time.monotonic()
        self._failing = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Exchange in a thread during the block, then withdraw this replica's window."""
        thread = threading.Thread(target=self._work, name="drift", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            await asyncio.to_thread(thread.join, STOP_S)

    def exchange(self) -> None:
        """Publish the window of this replica, and merge those of the others.

        Raises StorageError or UnavailableError.
        """
        own = DriftWindows(windows=tuple(self._monitor.published()))
        self._publications.put(self._replica, own.model_dump_json().encode())
        times = self._publications.published_at()
        now = times.pop(self._replica, max(times.values(), default=0.0))
        self._monitor.merge(
            {name: self._read(name) for name, at in times.items() if now - at <= MAX_AGE_S}
        )
        self._exchanged_at, self._failing = time.monotonic(), False
        for name, at in times.items():
            if now - at > REMOVE_S:
                self._publications.delete(name)

    def _read(self, replica: str) -> tuple[DriftWindow, ...]:
        """Read the windows of another replica; empty where they were withdrawn or can't be read."""
        document = self._publications.read(replica)
        try:
            return DriftWindows.model_validate_json(document or b'{"windows": []}').windows
        except ValidationError as error:  # of another release
            log.info("the drift window of the replica %s can't be read: %s", replica, error)
            return ()

    def _work(self) -> None:
        while True:
            try:
                self.exchange()
            except SegcalError as error:
                self._report(error)
            except Exception:  # the thread must outlive any one exchange
                log.exception("exchanging drift windows failed; it goes on")
            if self._stopping.wait(PUBLISH_S):
                break
        if not self._failing:
            try:
                self._publications.delete(self._replica)
            except SegcalError as error:
                self._report(error)

    def _report(self, error: SegcalError) -> None:
        """Log the first of several failures, and drop the others' windows once they are too old."""
        if not self._failing:
            log.warning("drift windows can't be exchanged: %s", error)
        self._failing = True
        if time.monotonic() - self._exchanged_at > MAX_AGE_S:
            self._monitor.merge({})
