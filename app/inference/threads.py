"""Thread use: the number of active requests, and worker threads for the rows of an image.

The workers are Python threads running numba kernels that release the interpreter's lock. numba's
own default threading layer aborts the process when two requests enter it at once.
"""

import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

STRIPS_PER_THREAD = 4  # so that the threads end at about the same time
# Values below which a strip is not worth a second thread: waking it takes time, and ONNX Runtime's
# own threads keep spinning for a while after an inference.
MIN_STRIP_VALUES = 1 << 21


class ActiveRequests:
    """The number of requests being computed; safe for threads."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """The number of active requests."""
        return self._count

    @property
    def total(self) -> int:
        """The number of active requests that share the threads."""
        return self._count

    @property
    def several(self) -> bool:
        """True where more than one request is active."""
        return self.total > 1

    def share(self, threads: int) -> int:
        """Return the threads that each active request may use, at least one."""
        return max(1, threads // max(1, self.total))

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a request as active while the block runs."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def _add(self, change: int) -> None:
        with self._lock:
            self._count += change


class SharedActiveRequests(ActiveRequests):
    """The active requests of several processes, whose numbers are in a file that all map.

    `path` is a file of an int64 for each process; that at `index`, this process's, becomes zero.
    """

    def __init__(self, path: Path, index: int) -> None:
        super().__init__()
        with path.open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._index = index
        self._add(0)

    @property
    def total(self) -> int:
        """The number of active requests of all processes, which share the threads."""
        return sum(self._counts)

    def _add(self, change: int) -> None:
        with self._lock:
            self._count += change
            self._counts[self._index] = self._count


class RowWorkers:
    """Threads that process an image's rows together with the caller; safe for several callers.

    While several requests are active each caller works alone: with all cores in use it would wait
    for a worker that waits for a core.
    """

    def __init__(self, count: int, active_requests: ActiveRequests | None = None) -> None:
        self._count, self._active_requests = count, active_requests
        self._pool = ThreadPoolExecutor(max(count - 1, 1), "rows")

    def map_rows(self, work: Callable[[int, int], None], rows: range, per_row: int) -> None:
        """Call `work(start, stop)` on strips of rows until all are done.

        `per_row` is the number of values of a row. The caller takes strips as the workers do, and
        cancels tasks that no worker has begun: it never waits for another caller's rows. Raises
        the first error of `work`.
        """
        strip = max(1, -(-len(rows) // (self._count * STRIPS_PER_THREAD)))
        strip = max(strip, MIN_STRIP_VALUES // per_row)
        starts = iter(range(rows.start, rows.stop, strip))

        def run() -> None:
            for start in starts:
                work(start, min(start + strip, rows.stop))

        alone = self._active_requests is not None and self._active_requests.several
        tasks = 0 if alone else min(self._count, -(-len(rows) // strip)) - 1
        futures = [self._pool.submit(run) for _ in range(tasks)]
        try:
            run()
        finally:
            begun = [future for future in futures if not future.cancel()]
            wait(begun)
        for future in begun:
            future.result()
