"""Helpers to wait for calibration jobs and to find their processes."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 240  # a fit's process imports torch first, which a busy machine takes its time over


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def worker_pid(job_folder: Path) -> int | None:
    """Find the process that works on a job, by its command line."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile
                continue
            if b"app.jobs.worker" in words and str(job_folder).encode() in words:
                return int(process.name)
    return None
