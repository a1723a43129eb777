"""How many requests share the cores, which decides how many threads one of them should take."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Crowd:
    """Counts who is inside; safe for threads."""

    def __init__(self) -> None:
        self._size = 0
        self._lock = threading.Lock()

    @property
    def several(self) -> bool:
        """Whether more than one is inside."""
        return self._size > 1

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside while a block runs."""
        with self._lock:
            self._size += 1
        try:
            yield
        finally:
            with self._lock:
                self._size -= 1
