"""How many requests share the cores, which decides how many threads one of them should take.

An image's rows, shared among a few threads by work that leaves the interpreter's lock.

Plain Python threads rather than numba's own: its default layer aborts the process when two
requests enter it at once.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager


class ActiveRequests:
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


STRIPS = 4  # for each thread, so that a slow one holds nobody up
# Values that one thread finishes before another is of use: that one has to wake up, and ONNX
# Runtime's own threads go on spinning for a while after an inference.
SMALLEST = 1 << 21


class RowWorkers:
    """Threads that help whoever calls; safe for several callers at once.

    In a crowd nobody is helped: the cores are taken, and a caller would wait for a helper that
    waits for a core.
    """

    def __init__(self, count: int, active_requests: ActiveRequests | None = None) -> None:
        self._count, self._active_requests = count, active_requests
        self._helpers = ThreadPoolExecutor(max(count - 1, 1), "rows")

    def map_rows(self, work: Callable[[int, int], None], rows: range, per_row: int) -> None:
        """Call `work(start, stop)` until all rows are done; `per_row` is what a row costs.

        The caller works too, and takes over what no helper has begun: it never waits for another
        caller's rows.
        """
        step = max(1, -(-len(rows) // (self._count * STRIPS)), SMALLEST // per_row)
        starts = iter(range(rows.start, rows.stop, step))

        def run() -> None:
            for start in starts:
                work(start, min(start + step, rows.stop))

        busy = self._active_requests is not None and self._active_requests.several
        helpers = 0 if busy else min(self._count, -(-len(rows) // step)) - 1
        helping = [self._helpers.submit(run) for _ in range(helpers)]
        try:
            run()
        finally:
            begun = [future for future in helping if not future.cancel()]
            wait(begun)
        for future in begun:
            future.result()
