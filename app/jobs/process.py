"""Server's side of a fit: start the worker process, write its progress to the job, stop it."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypedDict

from app.jobs.store import RESULT, Job, JobFiles
from app.schemas.fit import State
from app.settings import Settings
from app.storage.files import storage
from app.storage.manifest import timestamp

log = logging.getLogger(__name__)

GRACE_S = 5.0  # from terminate to kill; a fit that is publishing needs a moment
POLL_S = 0.1
MIN_PROGRESS = 0.02  # below this the remaining time is not extrapolated
LOG = "log.txt"
STOPPED = "expected the fit to finish, got a server that was stopped; it can be retried"
SECRETS = {"admin_token", "api_tokens", "metrics_token", "labelstudio_token"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Ending = tuple[State, str | None]  # a job's final state, and the error where it failed


class Message(TypedDict, total=False):
    """A line of the worker's output: progress, or the error message of a failed fit."""

    stage: str
    progress: float
    error: str


class FitProcess:
    """A child process that runs `python -m app.jobs.worker` on a job's folder.

    The child reads its settings from a pipe and exits when the pipe closes, so that it never
    outlives this process.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._terminated_at: float | None = None  # on the monotonic clock
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        with (folder / LOG).open("wb") as errors:
            self._child = subprocess.Popen(  # noqa: S603 - arguments are not user input
                [sys.executable, "-m", "app.jobs.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(settings.fit_threads)),
            )
        threading.Thread(target=self._pump, name="fit-progress", daemon=True).start()
        assert self._child.stdin is not None  # noqa: S101 - opened as a pipe
        try:
            self._child.stdin.write(settings.model_dump_json(exclude=SECRETS).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            log.warning("a fit's process ended before it read its settings")

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def message(self, timeout_s: float) -> Message | None:
        """Return the child's next message, empty after the timeout, None once it has exited."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            return {}
        if line is None:
            return None
        message: Message = json.loads(line)
        return message

    def stop(self) -> None:
        """Terminate the child; kill it when called again more than `GRACE_S` later."""
        if self._terminated_at is None:
            self._terminated_at = time.monotonic()
            self._child.terminate()
        elif time.monotonic() - self._terminated_at > GRACE_S:
            self._child.kill()

    def close(self) -> str:
        """Wait for the child's exit, killing it after `GRACE_S`; return its exit as a message."""
        assert self._child.stdin is not None  # noqa: S101 - opened as a pipe
        try:
            code = self._child.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        try:
            self._child.stdin.close()
        except BrokenPipeError:
            log.debug("a fit's process ended before it read its settings")
        if code < 0:
            name = signal.Signals(-code).name
            return f"expected the fit to finish, got its process ended by {name} (out of memory?)"
        return f"expected the fit to finish, got exit code {code}; see {LOG}"

    def _pump(self) -> None:
        """Queue the lines of the child's output, then None."""
        assert self._child.stdout is not None  # noqa: S101 - opened as a pipe
        with self._child.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)


@dataclass(frozen=True)
class JobRunner:
    """Runs one fit at a time.

    `stopping` is set once the server shuts down; `sweep` is called with every poll.
    """

    files: JobFiles
    settings: Settings
    stopping: threading.Event
    sweep: Callable[[], None]

    def run(self, job_id: str) -> Ending:
        """Run one fit and return its ending; raises StorageError."""
        with storage("a calibration job"):
            folder = self.files.folder(job_id)
            (folder / RESULT).unlink(missing_ok=True)
            job = self.files.read(job_id).model_copy(
                update={"state": "running", "stage": "starting", "started_at": timestamp()}
            )
            self.files.write(job)
            process = FitProcess(folder, self.settings)
            error: str | None = None
            try:
                error = self._follow(job, process)
            finally:
                exit_message = process.close()
        if self.stopping.is_set():
            return ending_of(self.files, job_id, "interrupted", STOPPED)
        if self.files.cancelled(job_id):
            return ending_of(self.files, job_id, "cancelled", None)
        return ending_of(self.files, job_id, "failed", error or exit_message)

    def _follow(self, job: Job, process: FitProcess) -> str | None:
        """Write a child's progress to its job until it exits; stop it on cancel and shutdown.

        Returns the error message of a failed fit.
        """
        error, started = None, None
        while (message := process.message(POLL_S)) is not None:
            error = message.get("error", error)
            if "progress" in message:
                started = started or time.monotonic()
                job = self._write_progress(job, message, time.monotonic() - started)
            self.sweep()
            if self.stopping.is_set() or self.files.cancelled(job.id):
                process.stop()
        return error

    def _write_progress(self, job: Job, message: Message, elapsed_s: float) -> Job:
        """Write progress to the job, with the remaining time extrapolated from it."""
        progress = message["progress"]
        remaining = None
        if progress > MIN_PROGRESS:
            remaining = round(elapsed_s * (1 - progress) / progress, 1)
        job = job.model_copy(
            update={
                "stage": message["stage"],
                "progress": round(progress, 4),
                "remaining_s": remaining,
            }
        )
        try:
            self.files.write(job)
        except OSError as error:  # a full disk must not end the fit
            log.warning("progress of %s could not be written: %s", job.id, error)
        return job


def ending_of(files: JobFiles, job_id: str, state: State, why: str | None) -> Ending:
    """Return "succeeded" where a job has published its calibrator, else `state` and `why`."""
    published = (files.root / job_id / RESULT).exists()
    return ("succeeded", None) if published else (state, why)
