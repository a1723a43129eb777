"""One attempt at a job: its fit runs in a process of its own, and what it says is written down."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from app.disk import storage
from app.fit_process import FitProcess, Message
from app.job_files import RESULT, Job, JobFiles, State
from app.settings import Settings
from app.versions import timestamp

log = logging.getLogger(__name__)

POLL_S = 0.1
ENOUGH_PROGRESS = 0.02  # to extrapolate from
STOPPED = "expected the fit to finish, got a server that was stopped; it can be retried"

Ending = tuple[State, str | None]  # how a job ended, and why if not well


@dataclass(frozen=True)
class Attempt:
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
