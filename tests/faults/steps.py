"""Run the service's file operations in child processes, and kill these at a given step.

Each line of standard input is a `Task` in JSON. The process forks for each and writes how the child
ended as one line. A task with a `step` n is killed just before its n-th call that opens, writes,
syncs, renames or removes a file; the code of the service is unchanged. With `file_bytes`, the
kernel kills it during the write that exceeds this size, or the write fails as on a full disk.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from app.errors import StorageError
from app.inference.model_card import read_model_folder
from app.jobs.queue import Jobs
from app.jobs.store import RESULT, UPLOAD, FitRequest
from app.jobs.worker import Progress
from app.jobs.worker import run as run_fit
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import write_json
from tests.factories.service import publish_temperature
from tests.factories.validation_data import npy, overconfident

CALLS = {
    "open", "write", "truncate", "ftruncate", "fsync", "rename", "replace", "link", "mkdir",
    "rmdir", "unlink", "remove", "flock", "flush", "close", "__exit__",
}  # fmt: skip
FILES = ("BufferedWriter", "BufferedRandom", "FileIO", "TextIOWrapper")
MODULES = ("posix", "io", "_io", "fcntl")
DISK_FULL = 3  # exit code of a task that raised StorageError

End = Literal["killed", "finished", "disk full"]


@dataclass(frozen=True)
class Task:
    """An action on a folder, and the step or file size at which its process is killed, if any.

    Unless `fatal`, a write beyond `file_bytes` raises an error instead.
    """

    action: str
    folder: str
    step: int = 0
    file_bytes: int | None = None
    fatal: bool = True


def settings_of(folder: Path) -> Settings:
    """Return the settings of a service on a test's folder."""
    return load_settings(
        models_dir=folder / "models", artifacts_dir=folder / "artifacts", threads=1, fit_threads=1
    )


def publish_and_activate(folder: Path) -> None:
    """Publish a version and make it the active one."""
    publish_temperature(folder / "artifacts", folder / "models" / "tiny", 4)


def delete(folder: Path) -> None:
    """Delete a version that is not active, the oldest."""
    store = ArtifactStore(folder / "artifacts")
    active = store.active_id("tiny")
    store.delete("tiny", min(m.id for m in store.versions("tiny") if m.id != active))


def submit(jobs: Jobs, folder: Path) -> str:
    """Submit a fit of temperature scaling on small logit maps; return the job's id."""
    model = read_model_folder(folder / "models" / "tiny")
    incoming = jobs.reserve()
    logits, labels = overconfident(4, 6, 6)
    (incoming / UPLOAD / "logits.npy").write_bytes(npy(logits))
    (incoming / UPLOAD / "labels.npy").write_bytes(npy(labels))
    request = FitRequest(
        model="tiny",
        model_sha256=model.sha256,
        method="temperature",
        activate="always",
        ignore_index=255,
    )
    return jobs.submit(incoming, request).id


def run_job(folder: Path) -> None:
    """Submit a job and record its states from queued to succeeded, as a server does."""
    jobs = Jobs(settings_of(folder))
    jobs.files.open()
    job = jobs.files.read(submit(jobs, folder))
    jobs.files.write(job.model_copy(update={"state": "running"}))
    active = ArtifactStore(folder / "artifacts").active_id("tiny")
    write_json(jobs.files.folder(job.id) / RESULT, {"calibrator": active, "activated": True})
    jobs._end(job, "succeeded", None)
    jobs.files.close()


def fit(folder: Path) -> None:
    """Run the fit of the newest job, as the worker process does."""
    settings = settings_of(folder)
    newest = Jobs(settings).files.ids()[0]
    with Path(os.devnull).open("w") as output:
        run_fit(settings.state_dir / ".jobs" / newest, settings, Progress(output, 0.0))


ACTIONS: dict[str, Callable[[Path], object]] = {
    action.__name__: action for action in (publish_and_activate, delete, run_job, fit)
}


def kill_at(step: int) -> None:
    """Kill this process just before its n-th call on the file system."""
    left = step

    def count(_frame: FrameType, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and is_file_call(function):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def is_file_call(function: object) -> bool:
    """Return whether a built-in function changes or opens files."""
    if getattr(function, "__name__", "") not in CALLS:
        return False
    owner = type(getattr(function, "__self__", None)).__name__
    return getattr(function, "__module__", None) in MODULES or owner in FILES


def limit_file_size(size: int, fatal: bool) -> None:
    """Limit the size of files in bytes: a larger one kills the process or raises an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run_task_and_exit(task: Task) -> None:
    """Run a task in this process, and exit."""
    if task.file_bytes is not None:
        limit_file_size(task.file_bytes, task.fatal)
    if task.step:
        kill_at(task.step)
    try:
        ACTIONS[task.action](Path(task.folder))
    except StorageError:
        os._exit(DISK_FULL)
    os._exit(0)


def end_of(status: int) -> End:
    """Return how a child ended; raises for every other end, a failure of the task itself."""
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXFSZ), status
        return "killed"
    endings: dict[int, End] = {0: "finished", DISK_FULL: "disk full"}
    return endings[os.WEXITSTATUS(status)]


def main() -> None:
    """Run tasks until the end of standard input."""
    for line in sys.stdin:
        task = Task(**json.loads(line))
        child = os.fork()
        if child == 0:
            run_task_and_exit(task)
        sys.stdout.write(end_of(os.waitpid(child, 0)[1]) + "\n")
        sys.stdout.flush()


def as_line(task: Task) -> str:
    """Encode a task as a line of the process's input."""
    return json.dumps(asdict(task)) + "\n"


if __name__ == "__main__":
    main()
