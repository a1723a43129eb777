"""Bounded queue of calibration jobs; one thread runs them, one child process at a time.

The thread writes each job's state to files (see `store`), from which every server process reads.
"""

import json
import logging
import shutil
import threading
from collections import deque
from pathlib import Path

from app.errors import BusyError, ConflictError, SegcalError, StorageError
from app.jobs.process import STOPPED, Ending, JobRunner, ending_of
from app.jobs.store import (
    CANCEL,
    REPEATABLE,
    RESULT,
    UPLOAD,
    FitRequest,
    Job,
    JobFiles,
    read_request,
)
from app.schemas.fit import WAITING, State
from app.settings import Settings
from app.storage.files import storage
from app.storage.manifest import timestamp

log = logging.getLogger(__name__)

TURN_S = 0.5  # between attempts to acquire the lock under which one fit at a time runs
IDLE_S = 5.0  # between searches for jobs of server processes that have died


class Jobs:
    """Calibration jobs of a service; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.files = JobFiles(settings.state_dir / ".jobs")
        self._settings = settings
        self._queue: deque[str] = deque()
        self._running: str | None = None
        self._endings: dict[str, Ending] = {}  # until they are written to disk
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._runner = JobRunner(self.files, settings, self._stopping, self._sweep)

    def start(self) -> None:
        """Mark the jobs of dead server processes as interrupted, and start the thread."""
        try:
            self.files.open()
            self.recover()
        except StorageError as error:
            # /segment needs no jobs: the service starts without them.
            log.warning("calibration jobs are disabled: %s", error)
            return
        self._thread = threading.Thread(target=self._work, name="fits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the running fit; it and the queued jobs become `interrupted`."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self.files.close()

    def reserve(self) -> Path:
        """Create the folder of an upload and reserve its place in the queue.

        Raises BusyError where the queue is full, StorageError.
        """
        with self.files.exclusive():
            self._require_room()
            return self.files.make_incoming()

    def release(self, incoming: Path) -> None:
        """Remove the folder of an upload that was rejected."""
        shutil.rmtree(incoming, ignore_errors=True)

    def submit(self, incoming: Path, request: FitRequest) -> Job:
        """Queue a fit on a validated upload."""
        with self.files.exclusive():  # so that `reserve` counts it once, as upload or as job
            job = self.files.create(incoming, request)
            self._enqueue(job)
        return job

    def retry(self, job_id: str) -> Job:
        """Queue a failed or interrupted job again.

        Raises ConflictError for other states, for deleted uploads and for those of an earlier
        release, BusyError for a full queue.
        """
        with self.files.exclusive():
            job = self.files.read(job_id)
            if job.state not in REPEATABLE or not (self.files.folder(job_id) / UPLOAD).is_dir():
                raise ConflictError(
                    f"expected a failed or interrupted job with its upload, got one {job.state}"
                )
            read_request(self.files.folder(job_id))
            self._require_room()
            (self.files.folder(job_id) / CANCEL).unlink(missing_ok=True)
            changes: dict[str, object] = {
                "state": "queued", "stage": "queued", "progress": 0.0, "owner": self.files.owner,
                "started_at": None, "finished_at": None, "remaining_s": None, "error": None,
            }  # fmt: skip
            job = job.model_copy(update=changes)
            self.files.write(job)
            self._enqueue(job)
        return job

    def cancel(self, job_id: str) -> Job:
        """Request the cancellation of a job and return the job as read before it takes effect.

        A failed or interrupted job is cancelled at once and its upload deleted. Raises
        ConflictError where the job has succeeded or is already cancelled.
        """
        with self.files.exclusive():
            job = self.files.read(job_id)
            if job.state in REPEATABLE:
                job = job.model_copy(update={"state": "cancelled"})
                self.files.write(job)
                self.files.drop_upload(job_id)
                return job
            if job.state not in WAITING:
                raise ConflictError(f"expected a job that has not ended, got one {job.state}")
            (self.files.folder(job_id) / CANCEL).touch()
        self._wake.set()
        return job

    def recover(self) -> None:
        """End the orphaned jobs.

        They are those of server processes that have died, and those of this process whose ending
        could not be written because the disk was full.
        """
        with self.files.exclusive():
            self.files.remove_abandoned()
            for job in self.files.all():
                if job.state in WAITING and self._is_orphaned(job):
                    default = ending_of(self.files, job.id, "interrupted", STOPPED)
                    self._end(job, *self._endings.get(job.id, default))

    def _is_orphaned(self, job: Job) -> bool:
        if job.owner == self.files.owner:
            return job.id != self._running and job.id not in self._queue
        return not self.files.alive(job.owner)

    def _require_room(self) -> None:
        """Raise BusyError where jobs and uploads in progress fill the queue."""
        waiting = sum(job.state in WAITING for job in self.files.all())
        taken = waiting + len(self.files.incoming())
        if taken >= self._settings.job_limit:
            raise BusyError(
                f"expected fewer than {self._settings.job_limit} calibration jobs waiting, "
                f"got {taken}"
            )

    def _enqueue(self, job: Job) -> None:
        self._queue.append(job.id)
        self._wake.set()

    def _work(self) -> None:
        """Run jobs until the service stops."""
        while not self._stopping.is_set():
            try:
                self._sweep()
                with self.files.try_acquire() as acquired:
                    if acquired and self._queue:
                        # Set before the job leaves the queue, or `recover` takes it for orphaned.
                        self._running = self._queue[0]
                        self._run(self._queue.popleft())
                if not self._queue:
                    self.recover()
            except (SegcalError, OSError):
                log.exception("the calibration queue failed; it goes on")
            finally:
                self._running = None
            # The lock may be held by another server process, which sends no signal when it is free.
            self._wake.wait(TURN_S if self._queue else IDLE_S)
            self._wake.clear()
        for job_id in self._queue:
            try:
                self._end(self.files.read(job_id), "interrupted", STOPPED)
            except (SegcalError, OSError):  # `recover` does so at the next start
                log.exception("a queued calibration job could not be marked as interrupted")

    def _sweep(self) -> None:
        """End the queued jobs that have been cancelled."""
        for job_id in list(self._queue):
            if self.files.cancelled(job_id):
                self._queue.remove(job_id)
                self._endings[job_id] = "cancelled", None
                self._end(self.files.read(job_id), "cancelled", None)

    def _run(self, job_id: str) -> None:
        """Run one fit and write its ending; on a full disk `recover` writes it later."""
        try:
            ending = self._runner.run(job_id)
        except SegcalError as error:
            log.warning("the fit of %s failed: %s", job_id, error)
            ending = "failed", str(error)
        self._endings[job_id] = ending
        self._end(self.files.read(job_id), *ending)

    def _end(self, job: Job, state: State, error: str | None) -> None:
        """Write a job's final state; delete its upload, unless it can be retried."""
        changes: dict[str, object] = {
            "state": state, "stage": state, "error": error, "remaining_s": None,
            "finished_at": timestamp(),
        }  # fmt: skip
        if state == "succeeded":
            result = json.loads((self.files.folder(job.id) / RESULT).read_bytes())
            changes |= {"progress": 1.0, **result}
        job = job.model_copy(update=changes)
        if state not in REPEATABLE:
            self.files.drop_upload(job.id)  # first, to free space for the state
        with storage("a calibration job"):
            self.files.write(job)
        self._endings.pop(job.id, None)
        self.files.limit_uploads(self._settings.retry_bytes)
        self.files.prune()
