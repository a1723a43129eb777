"""A fit's child process: started with low priority and few threads, followed, and stopped.

One attempt at a job: its fit runs in a process of its own, and what it says is written down.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypedDict

from app.jobs.store import RESULT, Job, JobFiles, State
from app.settings import Settings
from app.storage.files import storage
from app.storage.manifest import timestamp

log = logging.getLogger(__name__)

GRACE_S = 5.0  # from terminate to kill; a fit that is publishing needs a moment
LOG = "log.txt"
SECRETS = {"admin_token", "api_tokens"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Message(TypedDict, total=False):
    """A line from the child: progress, or the sentence it failed with."""

    stage: str
    progress: float
    error: str


class FitProcess:
    """`python -m app.jobs.worker` at work on a job's folder.

    The child reads its settings from a pipe and ends when that closes: with this process at the
    latest.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._stopped: float | None = None  # when it was told to, by the monotonic clock
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        with (folder / LOG).open("wb") as errors:
            self._child = subprocess.Popen(  # noqa: S603 - our own module, on our own folder
                [sys.executable, "-m", "app.jobs.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(settings.fit_threads)),
            )
        threading.Thread(target=self._pump, name="fit-progress", daemon=True).start()
        assert self._child.stdin is not None  # noqa: S101 - it was asked for
        try:
            self._child.stdin.write(settings.model_dump_json(exclude=SECRETS).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            log.warning("a fit ended before it began")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def message(self, timeout_s: float) -> Message | None:
        """Wait for a line of the child, empty where none came in time; None when it has ended."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            return {}
        if line is None:
            return None
        message: Message = json.loads(line)
        return message

    def stop(self) -> None:
        """Ask the child to end, and when asked again after a while make it end."""
        if self._stopped is None:
            self._stopped = time.monotonic()
            self._child.terminate()
        elif time.monotonic() - self._stopped > GRACE_S:
            self._child.kill()

    def close(self) -> str:
        """Wait for the end, forcing it if need be, and say how a child ended that did not say."""
        assert self._child.stdin is not None  # noqa: S101 - it was asked for
        try:
            code = self._child.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        try:
            self._child.stdin.close()
        except BrokenPipeError:
            log.debug("a fit ended before it read its settings")
        if code < 0:
            name = signal.Signals(-code).name
            return f"expected the fit to finish, got its process ended by {name} (out of memory?)"
        return f"expected the fit to finish, got an end with code {code}; {LOG} says more"

    def _pump(self) -> None:
        """Pass the child's lines on until it ends."""
        assert self._child.stdout is not None  # noqa: S101 - it was asked for
        with self._child.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)


log = logging.getLogger(__name__)

POLL_S = 0.1
ENOUGH_PROGRESS = 0.02  # to extrapolate from
STOPPED = "expected the fit to finish, got a server that was stopped; it can be retried"

Ending = tuple[State, str | None]  # how a job ended, and why if not well


@dataclass(frozen=True)
class JobRunner:
    """Runs fits; `stopping` says that the server ends, and `sweep` is called now and then."""

    files: JobFiles
    settings: Settings
    stopping: threading.Event
    sweep: Callable[[], None]

    def run(self, job_id: str) -> Ending:
        """Run one fit to its end; raises StorageError."""
        with storage("a calibration job"):
            folder = self.files.folder(job_id)
            (folder / RESULT).unlink(missing_ok=True)
            job = replace(
                self.files.read(job_id), state="running", stage="starting", started_at=timestamp()
            )
            self.files.write(job)
            process = FitProcess(folder, self.settings)
            error: str | None = None
            try:
                error = self._follow(job, process)
            finally:
                ending = process.close()
        if self.stopping.is_set():
            return ending_of(self.files, job_id, "interrupted", STOPPED)
        if self.files.cancelled(job_id):
            return ending_of(self.files, job_id, "cancelled", None)
        return ending_of(self.files, job_id, "failed", error or ending)

    def _follow(self, job: Job, process: FitProcess) -> str | None:
        """Write down a child's progress until it ends; stop it where that is wanted.

        Gives the sentence with which the child failed.
        """
        error, since = None, None
        while (message := process.message(POLL_S)) is not None:
            error = message.get("error", error)
            if "progress" in message:
                since = since or time.monotonic()
                job = self._noted(job, message, time.monotonic() - since)
            self.sweep()
            if self.stopping.is_set() or self.files.cancelled(job.id):
                process.stop()
        return error

    def _noted(self, job: Job, message: Message, elapsed_s: float) -> Job:
        """Write down progress, and extrapolate from it."""
        progress = message["progress"]
        remaining = None
        if progress > ENOUGH_PROGRESS:
            remaining = round(elapsed_s * (1 - progress) / progress, 1)
        job = replace(
            job, stage=message["stage"], progress=round(progress, 4), remaining_s=remaining
        )
        try:
            self.files.write(job)
        except OSError as error:  # a full disk must not end the fit
            log.warning("progress of %s could not be written: %s", job.id, error)
        return job


def ending_of(files: JobFiles, job_id: str, state: State, why: str | None) -> Ending:
    """Give the state in which a job ended; what it has published by then counts."""
    done = (files.root / job_id / RESULT).exists()
    return ("succeeded", None) if done else (state, why)
