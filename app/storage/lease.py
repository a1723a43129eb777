"""Lease of a model's fit in a bucket: one fit at a time, on any machine.

    <model>/leases/<number>.json     author and end of the lease, created once and extended by
                                     conditional puts while the fit runs

The number is the fencing number: a fit whose number is no longer the highest has lost its lease,
which is checked before its version is published and before it is activated. Ends are compared with
this machine's clock; clocks that differ by less than `LEASE_S` - `RENEW_S` take no lease early.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.errors import ConflictError, UnavailableError
from app.storage.objects import Objects

log = logging.getLogger(__name__)

LEASE_S = 60.0  # after which the lease of a fit that died is free
RENEW_S = 15.0


@dataclass(frozen=True)
class ObjectLease:
    """A held lease; `number` is its fencing number."""

    objects: Objects
    model: str
    number: int
    by: str

    @classmethod
    @contextmanager
    def acquire(cls, objects: Objects, model: str, by: str) -> Iterator["ObjectLease"]:
        """Create and hold the next lease, and end it; raises ConflictError for a held one."""
        last = last_number(objects, model)
        found = objects.read(lease_path(model, last))
        ends_at = found.document.get("ends_at", 0.0) if found else 0.0
        if isinstance(ends_at, float) and ends_at > time.time():
            holder = found.document.get("by") if found else None
            raise ConflictError(
                f"expected no other fit of {model} at once, got one by {holder}, "
                f"whose lease ends in {ends_at - time.time():.0f} s unless it is extended"
            )
        lease = cls(objects, model, last + 1, by)
        if not objects.create(lease_path(model, lease.number), lease.document(LEASE_S)):
            raise ConflictError(f"expected no other fit of {model} at once, got one that began now")
        lease.check()
        if last:
            objects.delete(lease_path(model, last))
        stopping = threading.Event()
        extending = threading.Thread(
            target=lease.extend_until, args=(stopping,), name="lease", daemon=True
        )
        extending.start()
        try:
            yield lease
        finally:
            stopping.set()
            extending.join()
            lease.set_end(0.0)

    def check(self) -> None:
        """Raise ConflictError once another fit holds the lease."""
        last = last_number(self.objects, self.model)
        if last != self.number:
            raise ConflictError(
                f"expected the lease {self.number} of the fit of {self.model} to be the last, "
                f"got {last}: another fit began after this one's had ended"
            )

    def extend_until(self, stopping: threading.Event) -> None:
        """Extend the lease again and again."""
        while not stopping.wait(RENEW_S):
            self.set_end(LEASE_S)

    def set_end(self, seconds: float) -> None:
        """Let the lease end after so many seconds; where the store is down, it stays as it is."""
        path = lease_path(self.model, self.number)
        try:
            found = self.objects.read(path)
            if found is not None:
                self.objects.replace(path, self.document(seconds), found.version)
        except UnavailableError as error:
            log.warning("the lease of the fit of %s can't be changed: %s", self.model, error)

    def document(self, seconds: float) -> bytes:
        """Encode the lease with its end after so many seconds."""
        return json.dumps({"by": self.by, "ends_at": time.time() + seconds}).encode()


def last_number(objects: Objects, model: str) -> int:
    """Return the number of a model's last lease; 0 without one."""
    numbers = objects.names(f"{model}/leases")
    return int(numbers[-1].partition(".")[0]) if numbers else 0


def lease_path(model: str, number: int) -> str:
    """Return the path of a lease."""
    return f"{model}/leases/{number:010d}.json"
