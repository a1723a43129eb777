"""Background fits: a bounded queue, one child process at a time, states that outlive the server.

A thread of its own starts each fit as `python -m app.jobs.worker`, reads its progress, and writes
the job's state; readers, in any server process, read files (see `job_files`).
"""

import json
import logging
import shutil
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path

from app.errors import BusyError, ConflictError, SegcalError, StorageError
from app.jobs.process import STOPPED, Ending, JobRunner, ending_of
from app.jobs.store import (
    CANCEL,
    REPEATABLE,
    RESULT,
    UPLOAD,
    WAITING,
    FitRequest,
    Job,
    JobFiles,
    State,
)
from app.settings import Settings
from app.storage.files import storage
from app.storage.manifest import timestamp

log = logging.getLogger(__name__)

TURN_S = 0.5  # between looks whether another server process is done with its fit
IDLE_S = 5.0  # between looks for jobs whose server has died


class Jobs:
    """The calibration jobs of a service. Safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self.files = JobFiles(settings.artifacts_dir / ".jobs")
        self._settings = settings
        self._queue: deque[str] = deque()
        self._running: str | None = None
        self._endings: dict[str, Ending] = {}  # until they are written down
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._runner = JobRunner(self.files, settings, self._stopping, self._sweep)

    def start(self) -> None:
        """Mark what a dead server left behind, and begin to work."""
        try:
            self.files.open()
            self.recover()
        except StorageError as error:
            # Requests for images are served all the same.
            log.warning("no calibration jobs: %s", error)
            return
        self._thread = threading.Thread(target=self._work, name="fits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the running fit; it and the queued ones are then `interrupted`."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self.files.close()

    def reserve(self) -> Path:
        """Make the folder for an upload, which takes a place in the queue.

        Raises BusyError where none is left, StorageError.
        """
        with self.files.exclusive():
            waiting = [job for job in self.files.all() if job.state in WAITING]
            self._require_room(len(waiting) + len(self.files.incoming()))
            return self.files.make_incoming()

    def release(self, incoming: Path) -> None:
        """Remove an upload that became no job."""
        shutil.rmtree(incoming, ignore_errors=True)

    def submit(self, incoming: Path, request: FitRequest) -> Job:
        """Queue a fit on an upload that has been checked."""
        with self.files.exclusive():  # so that it is counted once, as coming in or as queued
            job = self.files.take_in(incoming, request)
            self._enqueue(job)
        return job

    def retry(self, job_id: str) -> Job:
        """Queue a failed or interrupted job again.

        Raises ConflictError for any other, or where its upload is gone, and BusyError.
        """
        with self.files.exclusive():
            job = self.files.read(job_id)
            if job.state not in REPEATABLE or not (self.files.folder(job_id) / UPLOAD).is_dir():
                raise ConflictError(
                    f"expected a failed or interrupted job with its upload, got one {job.state}"
                )
            waiting = [other for other in self.files.all() if other.state in WAITING]
            self._require_room(len(waiting) + len(self.files.incoming()))
            (self.files.folder(job_id) / CANCEL).unlink(missing_ok=True)
            job = replace(
                job, state="queued", stage="queued", progress=0.0, owner=self.files.owner,
                started_at=None, finished_at=None, remaining_s=None, error=None,
            )  # fmt: skip
            self.files.write(job)
            self._enqueue(job)
        return job

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; whoever runs it sees to that. Gives the job as it stands now.

        One that is failed or interrupted becomes cancelled at once, and its upload goes. Raises
        ConflictError where it has succeeded or is cancelled already.
        """
        with self.files.exclusive():
            job = self.files.read(job_id)
            if job.state in REPEATABLE:
                job = replace(job, state="cancelled")
                self.files.write(job)
                self.files.drop_upload(job_id)
                return job
            if job.state not in WAITING:
                raise ConflictError(f"expected a job that has not ended, got one {job.state}")
            (self.files.folder(job_id) / CANCEL).touch()
        self._wake.set()
        return job

    def recover(self) -> None:
        """Mark the jobs of server processes that are gone, and our own that no one looks after.

        The latter are those whose end could not be written down: the disk was full.
        """
        with self.files.exclusive():
            self.files.remove_abandoned()
            for job in self.files.all():
                if job.state in WAITING and self._is_orphaned(job):
                    otherwise = ending_of(self.files, job.id, "interrupted", STOPPED)
                    self._end(job, *self._endings.get(job.id, otherwise))

    def _is_orphaned(self, job: Job) -> bool:
        if job.owner == self.files.owner:
            return job.id != self._running and job.id not in self._queue
        return not self.files.alive(job.owner)

    def _require_room(self, taken: int) -> None:
        if taken >= self._settings.job_limit:
            raise BusyError(
                f"expected fewer than {self._settings.job_limit} calibration jobs waiting, "
                f"got {taken}"
            )

    def _enqueue(self, job: Job) -> None:
        self._queue.append(job.id)
        self._wake.set()

    def _work(self) -> None:
        """Run jobs until told to stop."""
        while not self._stopping.is_set():
            try:
                self._sweep()
                with self.files.try_acquire() as ours:
                    if ours and self._queue:
                        self._running = self._queue[0]  # first, so that it is never in neither
                        self._run(self._queue.popleft())
                if not self._queue:
                    self.recover()
            except (SegcalError, OSError):
                log.exception("a calibration job could not be looked after")
            finally:
                self._running = None
            # Another server process may have the turn, and nothing tells us when it is done.
            self._wake.wait(TURN_S if self._queue else IDLE_S)
            self._wake.clear()
        for job_id in self._queue:
            try:
                self._end(self.files.read(job_id), "interrupted", STOPPED)
            except (SegcalError, OSError):  # the next start will see to it
                log.exception("a queued calibration job could not be marked")

    def _sweep(self) -> None:
        """End the queued jobs that are to stop."""
        for job_id in list(self._queue):
            if self.files.cancelled(job_id):
                self._queue.remove(job_id)
                self._endings[job_id] = "cancelled", None
                self._end(self.files.read(job_id), "cancelled", None)

    def _run(self, job_id: str) -> None:
        """Run one fit to its end and write that down; where there is no room, `recover` will."""
        try:
            ended = self._runner.run(job_id)
        except SegcalError as error:
            log.warning("the fit of %s failed: %s", job_id, error)
            ended = "failed", str(error)
        self._endings[job_id] = ended
        self._end(self.files.read(job_id), *ended)

    def _end(self, job: Job, state: State, error: str | None) -> None:
        """Write down a job's end and delete what is of no more use."""
        result = {}
        if state == "succeeded":
            result = json.loads((self.files.folder(job.id) / RESULT).read_bytes())
        job = replace(
            job, state=state, stage=state, error=error, remaining_s=None, finished_at=timestamp(),
            progress=1.0 if state == "succeeded" else job.progress, **result,
        )  # fmt: skip
        if state not in REPEATABLE:
            self.files.drop_upload(job.id)  # first, so that there is room for the state
        with storage("a calibration job"):
            self.files.write(job)
        self._endings.pop(job.id, None)
        self.files.prune()
