"""Calibration jobs on disk, which several server processes may share.

    <artifacts>/.jobs/<id>/request.json    what was asked
                          /state.json      how it stands; replaced atomically
                          /upload/         the data, until the job has succeeded or is cancelled
                          /report.json     of the calibrator that came of it, which
                          /result.json     names
                          /log.txt         what the fit's process had to say
                          /cancel          present once the job is to stop
    <artifacts>/.jobs/.incoming-<owner>-<id>/   an upload that is still coming in
    <artifacts>/.jobs/.owner-<owner>       locked by a server process for as long as it lives

A lock goes with its process, however that ends: that is how the next server knows which jobs
were left behind.
"""

import fcntl
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import TypeAdapter, ValidationError

from app.calibration.dataset import Augmentation
from app.errors import NotFoundError
from app.recalibration import Activate
from app.storage.files import locked, storage, write_json
from app.storage.manifest import timestamp

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
WAITING: tuple[State, ...] = ("queued", "running")
REPEATABLE: tuple[State, ...] = ("failed", "interrupted")

ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{6}")
INCOMING, OWNER = ".incoming-", ".owner-"
UPLOAD, CANCEL = "upload", "cancel"
REQUEST, STATE, REPORT, RESULT = "request.json", "state.json", "report.json", "result.json"
KEPT = 100  # records of ended jobs


@dataclass(frozen=True)
class FitRequest:
    """What a caller asked for, and the model it was asked of."""

    model: str
    model_sha256: str
    method: str = "auto"
    activate: Activate = "if_better"
    allow_label_changes: bool = False
    augmentation: Augmentation = "none"
    ignore_index: int = 255
    seed: int = 0
    note: str = ""


@dataclass(frozen=True)
class Job:
    """How a job stands; `progress` in 0..1, times in RFC 3339, `remaining_s` an estimate."""

    id: str
    model: str
    method: str
    state: State
    stage: str
    progress: float
    created_at: str
    owner: str
    started_at: str | None = None
    finished_at: str | None = None
    remaining_s: float | None = None
    error: str | None = None
    calibrator: str | None = None
    activated: bool = False
    note: str = ""


JOB, FIT_REQUEST = TypeAdapter(Job), TypeAdapter(FitRequest)


class JobFiles:
    """All jobs below one folder, as one server process sees them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.owner = secrets.token_hex(6)
        self.owner_lock: IO[bytes] | None = None

    def open(self) -> None:
        """Make the folder and take this process's lock; raises StorageError."""
        with storage("a calibration job"):
            self.root.mkdir(parents=True, exist_ok=True)
        with self.exclusive():
            self.owner_lock = (self.root / f"{OWNER}{self.owner}").open("wb")
            fcntl.flock(self.owner_lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Give the lock back."""
        if self.owner_lock is not None:
            self.owner_lock.close()
            (self.root / f"{OWNER}{self.owner}").unlink(missing_ok=True)

    def folder(self, job: str) -> Path:
        """Find a job's folder; the id must have our form before it meets a path."""
        folder = self.root / job
        if ID_PATTERN.fullmatch(job) and folder.is_dir():
            return folder
        raise NotFoundError(f"expected the id of a calibration job, got {job[:80]!r}")

    def ids(self) -> list[str]:
        """List all jobs, newest first."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if ID_PATTERN.fullmatch(p.name))[::-1]

    def read(self, job: str) -> Job:
        """Read how a job stands."""
        try:
            return JOB.validate_json((self.folder(job) / STATE).read_bytes())
        except (FileNotFoundError, ValidationError) as error:
            raise NotFoundError(f"expected a job's state in {job}, got none to read") from error

    def all(self) -> list[Job]:
        """Read all jobs, newest first."""
        found = []
        for job in self.ids():
            try:
                found.append(self.read(job))
            except NotFoundError:  # pruned meanwhile, or damaged
                continue
        return found

    def write(self, job: Job) -> None:
        """Replace a job's state."""
        write_json(self.folder(job.id) / STATE, asdict(job))

    def cancelled(self, job: str) -> bool:
        """Tell whether a job is to stop."""
        return (self.root / job / CANCEL).exists()

    def report(self, job: str) -> dict[str, object] | None:
        """Read the report of what came of a job."""
        try:
            document = json.loads((self.folder(job) / REPORT).read_bytes())
        except FileNotFoundError:
            return None
        return document if isinstance(document, dict) else None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock under which jobs are taken in and change hands."""
        with storage("a calibration job"), locked(self.root / ".lock"):
            yield

    @contextmanager
    def try_acquire(self) -> Iterator[bool]:
        """Hold the lock under which one fit at a time runs; gives False where another one does."""
        with (self.root / ".fitting").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def incoming(self) -> list[Path]:
        """List the folders of uploads that are coming in."""
        return list(self.root.glob(f"{INCOMING}*"))

    def make_incoming(self) -> Path:
        """Make the folder of a new job, which is not a job before its upload is whole."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(3)}"
        folder = self.root / f"{INCOMING}{self.owner}-{name}"
        (folder / UPLOAD).mkdir(parents=True)
        return folder

    def take_in(self, incoming: Path, request: FitRequest) -> Job:
        """Make a queued job of a folder that came in."""
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
            write_json(incoming / REQUEST, asdict(request))
            write_json(incoming / STATE, asdict(job))
            incoming.rename(self.root / job.id)
        return job

    def alive(self, owner: str) -> bool:
        """Tell whether a server process still lives; the lock file of a dead one is removed.

        To be called under `exclusive`: otherwise a process that is starting may look dead.
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
        """Remove what server processes that are gone have left behind, beside their jobs."""
        for folder in self.incoming():
            if not self.alive(folder.name.removeprefix(INCOMING).partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)
        for path in self.root.glob(f"{OWNER}*"):
            self.alive(path.name.removeprefix(OWNER))

    def drop_upload(self, job: str) -> None:
        """Delete a job's data."""
        shutil.rmtree(self.root / job / UPLOAD, ignore_errors=True)

    def prune(self) -> None:
        """Delete the oldest records of ended jobs."""
        ended = [job.id for job in self.all() if job.state not in WAITING]
        for job in ended[KEPT:]:
            shutil.rmtree(self.root / job, ignore_errors=True)


def read_request(folder: Path) -> FitRequest:
    """Read what was asked from a job's folder."""
    return FIT_REQUEST.validate_json((folder / REQUEST).read_bytes())
