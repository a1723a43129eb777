"""Helpers to wait for calibration jobs and to find their processes."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 240  # the worker imports torch first, which is slow on a loaded machine


def wait_for(done: Callable[[], bool], event: str) -> None:
    """Wait until `done()` is true; fails after 240 s, naming the event."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"expected {event} within {PATIENCE_S} s"
        time.sleep(0.05)


def worker_pid(job_folder: Path) -> int | None:
    """Return the id of a job's worker process, found by its command line."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile
                continue
            if b"app.jobs.worker" in words and str(job_folder).encode() in words:
                return int(process.name)
    return None
