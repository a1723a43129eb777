"""A process that does a piece of work in children of its own and has them die on the way.

Each line on its input is an `Order`; for each it forks, and answers with a line on how the child
ended. A child that is to die at its n-th step is killed just before the n-th call by which it would
open, write, sync, rename or remove a file: the work is the real one and knows nothing of this. One
that may write only so many bytes to a file is killed by the kernel in the middle of a write, or
gets the error of a full disk.
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
NO_ROOM = 3  # the exit code of work that met a full disk and said so

End = Literal["killed", "finished", "no room"]


@dataclass(frozen=True)
class Order:
    """A piece of work on a folder, and when its child is to die: never, by default."""

    work: str
    folder: str
    step: int = 0
    file_bytes: int | None = None
    fatal: bool = True


def settings_of(folder: Path) -> Settings:
    """The service of a test's folder."""
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
    """Upload a small table of logits for a fit of one temperature."""
    model = read_model_folder(folder / "models" / "tiny")
    incoming = jobs.reserve()
    logits, labels = overconfident(4, 6, 6)
    (incoming / UPLOAD / "logits.npy").write_bytes(npy(logits))
    (incoming / UPLOAD / "labels.npy").write_bytes(npy(labels))
    request = FitRequest(
        model="tiny", model_sha256=model.sha256, method="temperature", activate="always"
    )
    return jobs.submit(incoming, request).id


def run_a_job(folder: Path) -> None:
    """Take a job in, and write down that it runs and how it ends, as a server does."""
    jobs = Jobs(settings_of(folder))
    jobs.files.open()
    job = jobs.files.read(submit(jobs, folder))
    jobs.files.write(job.model_copy(update={"state": "running"}))
    active = ArtifactStore(folder / "artifacts").active_id("tiny")
    write_json(jobs.files.folder(job.id) / RESULT, {"calibrator": active, "activated": True})
    jobs._end(job, "succeeded", None)
    jobs.files.close()


def fit(folder: Path) -> None:
    """Run the newest job's fit, as its process does."""
    settings = settings_of(folder)
    newest = Jobs(settings).files.ids()[0]
    with Path(os.devnull).open("w") as output:
        run_fit(settings.artifacts_dir / ".jobs" / newest, settings, Progress(output, 0.0))


WORK: dict[str, Callable[[Path], object]] = {
    work.__name__: work for work in (publish_and_activate, delete, run_a_job, fit)
}


def die_at(step: int) -> None:
    """Have this process killed just before its n-th call on the file system."""
    left = step

    def count(_frame: FrameType, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and is_step(function):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def is_step(function: object) -> bool:
    """Tell whether a call of a built-in function is one on the file system."""
    if getattr(function, "__name__", "") not in CALLS:
        return False
    owner = type(getattr(function, "__self__", None)).__name__
    return getattr(function, "__module__", None) in MODULES or owner in FILES


def limit_files(size: int, fatal: bool) -> None:
    """Let no file grow beyond a size; the kernel kills, or refuses as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def obey(order: Order) -> None:
    """Do the work in this process, which ends with it."""
    if order.file_bytes is not None:
        limit_files(order.file_bytes, order.fatal)
    if order.step:
        die_at(order.step)
    try:
        WORK[order.work](Path(order.folder))
    except StorageError:
        os._exit(NO_ROOM)
    os._exit(0)


def how_it_ended(status: int) -> End:
    """Name a child's end; any other than these three is the work's own failure."""
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXFSZ), status
        return "killed"
    endings: dict[int, End] = {0: "finished", NO_ROOM: "no room"}
    return endings[os.WEXITSTATUS(status)]


def main() -> None:
    """Take orders until the input ends."""
    for line in sys.stdin:
        order = Order(**json.loads(line))
        child = os.fork()
        if child == 0:
            obey(order)
        sys.stdout.write(how_it_ended(os.waitpid(child, 0)[1]) + "\n")
        sys.stdout.flush()


def as_line(order: Order) -> str:
    """Write an order for the process's input."""
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    main()
