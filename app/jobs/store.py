"""Calibration jobs on disk, shared by the server processes of one artifacts folder.

    <artifacts>/.jobs/<id>/request.json    the fit's options
                          /state.json      status, replaced atomically
                          /upload/         validation data; deleted on success and cancellation,
                                           and above the byte budget for retries
                          /report.json     report of the published calibrator
                          /result.json     id of the published calibrator, and its activation
                          /log.txt         standard error of the fit's process
                          /cancel          present once a cancellation is requested
    <artifacts>/.jobs/.incoming-<owner>-<id>/   upload in progress
    <artifacts>/.jobs/.owner-<owner>       locked by a server process while it runs

The system releases a lock when its process exits, whatever the reason: a job is orphaned if the
lock of its owner is free.
"""

import fcntl
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ConfigDict, ValidationError

from app.errors import ConflictError, NotFoundError
from app.schemas.fit import WAITING, FitOptions, IgnoreIndex, JobStatus, State
from app.storage.files import locked, storage, try_locked, write_json
from app.storage.manifest import timestamp

REPEATABLE: tuple[State, ...] = ("failed", "interrupted")

ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{6}")
INCOMING, OWNER = ".incoming-", ".owner-"
UPLOAD, CANCEL = "upload", "cancel"
REQUEST, STATE, REPORT, RESULT = "request.json", "state.json", "report.json", "result.json"
KEPT = 100  # ended jobs whose records are kept


class FitRequest(FitOptions):
    """Options of a requested fit, its model, and the label of void pixels in its upload."""

    model_config = ConfigDict(extra="forbid")

    ignore_index: IgnoreIndex

    model: str
    model_sha256: str


class Job(JobStatus):
    """A job on disk; `owner` is the server process that queued it."""

    owner: str


class JobFiles:
    """Files of all jobs, opened by one server process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.owner = secrets.token_hex(6)
        self.owner_lock: IO[bytes] | None = None

    def open(self) -> None:
        """Create the folder and acquire this process's lock; raises StorageError."""
        with storage("a calibration job"):
            self.root.mkdir(parents=True, exist_ok=True)
        with self.exclusive():
            self.owner_lock = (self.root / f"{OWNER}{self.owner}").open("wb")
            fcntl.flock(self.owner_lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Release this process's lock."""
        if self.owner_lock is not None:
            self.owner_lock.close()
            (self.root / f"{OWNER}{self.owner}").unlink(missing_ok=True)

    def folder(self, job: str) -> Path:
        """Return a job's folder; an id that doesn't match `ID_PATTERN` is not joined to a path."""
        folder = self.root / job
        if ID_PATTERN.fullmatch(job) and folder.is_dir():
            return folder
        raise NotFoundError(f"expected the id of a calibration job, got {job[:80]!r}")

    def ids(self) -> list[str]:
        """List the ids of all jobs, newest first."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if ID_PATTERN.fullmatch(p.name))[::-1]

    def read(self, job: str) -> Job:
        """Read a job; raises NotFoundError, for a damaged record too."""
        try:
            return Job.model_validate_json((self.folder(job) / STATE).read_bytes())
        except (OSError, ValidationError) as error:
            raise NotFoundError(f"expected a readable state of the job {job}, got none") from error

    def all(self) -> list[Job]:
        """Read all jobs, newest first."""
        jobs = []
        for job in self.ids():
            try:
                jobs.append(self.read(job))
            except NotFoundError:  # pruned in the meantime, or damaged
                continue
        return jobs

    def write(self, job: Job) -> None:
        """Replace a job's state."""
        write_json(self.folder(job.id) / STATE, job.model_dump())

    def cancelled(self, job: str) -> bool:
        """Return whether the cancellation of a job is requested."""
        return (self.root / job / CANCEL).exists()

    def report(self, job: str) -> dict[str, object] | None:
        """Read the report of a job's calibrator; None before the job has succeeded."""
        try:
            document = json.loads((self.folder(job) / REPORT).read_bytes())
        except (OSError, ValueError, RecursionError):  # missing or damaged
            return None
        return document if isinstance(document, dict) else None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock under which jobs are created and change their owner."""
        with storage("a calibration job"), locked(self.root / ".lock"):
            yield

    @contextmanager
    def try_acquire(self) -> Iterator[bool]:
        """Try to hold the lock under which one fit at a time runs; yield whether it is held."""
        with try_locked(self.root / ".fitting") as held:
            yield held

    def incoming(self) -> list[Path]:
        """List the folders of uploads in progress, of all server processes."""
        return list(self.root.glob(f"{INCOMING}*"))

    def make_incoming(self) -> Path:
        """Create the folder of an upload; `create` turns it into a job once it is complete."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(3)}"
        folder = self.root / f"{INCOMING}{self.owner}-{name}"
        (folder / UPLOAD).mkdir(parents=True)
        return folder

    def create(self, incoming: Path, request: FitRequest) -> Job:
        """Create a queued job from the folder of a complete upload."""
        job = Job(
            id=incoming.name.removeprefix(f"{INCOMING}{self.owner}-"),
            model=request.model,
            method=request.method,
            state="queued",
            stage="queued",
            progress=0.0,
            created_at=timestamp(),
            owner=self.owner,
            note=request.note,
        )
        with storage("a calibration job"):
            write_json(incoming / REQUEST, request.model_dump())
            write_json(incoming / STATE, job.model_dump())
            incoming.rename(self.root / job.id)
        return job

    def alive(self, owner: str) -> bool:
        """Return whether a server process is running; removes the lock file of a dead one.

        Call it under `exclusive`: a process that is starting creates its file before it locks it.
        """
        if owner == self.owner:
            return True
        path = self.root / f"{OWNER}{owner}"
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def remove_abandoned(self) -> None:
        """Remove the uploads in progress and the lock files of dead server processes."""
        for folder in self.incoming():
            if not self.alive(folder.name.removeprefix(INCOMING).partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)
        for path in self.root.glob(f"{OWNER}*"):
            self.alive(path.name.removeprefix(OWNER))

    def drop_upload(self, job: str) -> None:
        """Delete a job's upload."""
        shutil.rmtree(self.root / job / UPLOAD, ignore_errors=True)

    def limit_uploads(self, limit: int) -> None:
        """Delete the oldest uploads kept for a retry while all exceed `limit` bytes."""
        total = 0
        for job in self.all():
            if job.state in REPEATABLE:
                files = (self.root / job.id / UPLOAD).rglob("*")
                total += sum(path.lstat().st_size for path in files if path.is_file())
                if total > limit:
                    self.drop_upload(job.id)

    def prune(self) -> None:
        """Delete the records of ended jobs but the newest `KEPT`."""
        ended = [job.id for job in self.all() if job.state not in WAITING]
        for job in ended[KEPT:]:
            shutil.rmtree(self.root / job, ignore_errors=True)


def read_request(folder: Path) -> FitRequest:
    """Read the options of a job's fit from its folder; raises ConflictError for unknown ones."""
    try:
        return FitRequest.model_validate_json((folder / REQUEST).read_bytes())
    except ValidationError as error:
        raise ConflictError(
            "expected an upload to this release, got one to another release: upload it again"
        ) from error
