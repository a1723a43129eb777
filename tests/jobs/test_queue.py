"""The job queue is bounded, runs one fit at a time, cancels, and recovers after a restart.

Fits are real processes; tests of cancellation cancel them while they start.
"""

import fcntl
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import BusyError, ConflictError, NotFoundError
from app.inference.model_card import read_model_folder
from app.jobs.queue import Jobs
from app.jobs.store import KEPT, UPLOAD, FitRequest, Job
from app.jobs.worker import Progress
from app.recalibration import PUBLISHING
from app.schemas.fit import State
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from tests.factories.jobs import wait_for, worker_pid
from tests.factories.service import publish_temperature
from tests.factories.validation_data import npy, overconfident

MakeJobs = Callable[..., Jobs]


@pytest.fixture
def make_jobs(make_settings: Callable[..., Settings]) -> Iterator[MakeJobs]:
    """Return a function that starts a job queue on the test's folders."""
    made = []

    def make(**settings: object) -> Jobs:
        jobs = Jobs(make_settings(**settings))
        jobs.start()
        made.append(jobs)
        return jobs

    yield make
    for jobs in made:
        jobs.stop()


@pytest.fixture
def request_for(models_dir: Path) -> Callable[..., FitRequest]:
    """Return a function that builds a request for temperature scaling of the model `tiny`."""
    folder = read_model_folder(models_dir / "tiny")

    def make(**fields: object) -> FitRequest:
        asked = {
            "model": "tiny", "model_sha256": folder.sha256, "method": "temperature",
            "ignore_index": 255, **fields,
        }  # fmt: skip
        return FitRequest.model_validate(asked)

    return make


def submit(jobs: Jobs, request: FitRequest, images: int = 10, side: int = 8) -> Job:
    incoming = jobs.reserve()
    logits, labels = overconfident(images, side, side)
    (incoming / UPLOAD / "logits.npy").write_bytes(npy(logits))
    (incoming / UPLOAD / "labels.npy").write_bytes(npy(labels))
    return jobs.submit(incoming, request)


def state_of(jobs: Jobs, job: Job) -> State:
    return jobs.files.read(job.id).state


def wait_for_state(jobs: Jobs, job: Job, state: State) -> None:
    wait_for(lambda: state_of(jobs, job) == state, f"a job {state}")


def has_upload(jobs: Jobs, job: Job) -> bool:
    return (jobs.files.folder(job.id) / UPLOAD).exists()


def wait_for_process(jobs: Jobs, job: Job) -> int:
    wait_for(lambda: worker_pid(jobs.files.folder(job.id)) is not None, "the fit's process")
    pid = worker_pid(jobs.files.folder(job.id))
    assert pid is not None
    return pid


def test_queue_bound_counts_incoming_and_queued_jobs(make_jobs, request_for):
    jobs = make_jobs(job_limit=2)
    first, second = jobs.reserve(), jobs.reserve()

    with pytest.raises(BusyError, match="fewer than 2 calibration jobs waiting, got 2"):
        jobs.reserve()
    jobs.release(first)
    jobs.release(second)
    assert jobs.files.incoming() == []
    jobs.release(jobs.reserve())


def test_jobs_run_one_at_a_time_and_can_be_cancelled(make_jobs, request_for):
    jobs = make_jobs()
    running, queued = (submit(jobs, request_for()) for _ in range(2))
    pid = wait_for_process(jobs, running)

    assert state_of(jobs, running) == "running"
    assert state_of(jobs, queued) == "queued"
    assert worker_pid(jobs.files.folder(queued.id)) is None
    for job in (queued, running):
        jobs.cancel(job.id)
        wait_for_state(jobs, job, "cancelled")
        assert not has_upload(jobs, job)
        with pytest.raises(ConflictError, match="expected a job that has not ended"):
            jobs.cancel(job.id)
        with pytest.raises(ConflictError, match="failed or interrupted"):
            jobs.retry(job.id)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the process to be gone")
    assert [job.state for job in jobs.files.all()] == ["cancelled", "cancelled"]


def test_killed_fit_is_failed_and_can_be_cancelled(make_jobs, request_for):
    jobs = make_jobs()
    job = submit(jobs, request_for())
    os.kill(wait_for_process(jobs, job), signal.SIGKILL)
    wait_for_state(jobs, job, "failed")

    assert "SIGKILL" in str(jobs.files.read(job.id).error)
    assert has_upload(jobs, job)
    assert jobs.cancel(job.id).state == "cancelled"
    assert not has_upload(jobs, job)


def test_failed_fit_stores_its_error(make_jobs, request_for, artifacts_dir):
    jobs = make_jobs()
    job = submit(jobs, request_for(model_sha256="0" * 64))
    wait_for_state(jobs, job, "failed")

    assert str(jobs.files.read(job.id).error).startswith("expected the model with hash 000000")
    assert ArtifactStore(artifacts_dir).versions("tiny") == []


def test_stopped_server_leaves_interrupted_jobs_that_can_be_retried(
    make_jobs, request_for, artifacts_dir
):
    first = make_jobs()
    running, queued = (submit(first, request_for(note="a trial")) for _ in range(2))
    wait_for_process(first, running)
    first.stop()
    second = make_jobs(fit_threads=1)

    assert [job.state for job in second.files.all()] == ["interrupted", "interrupted"]
    assert "stopped" in str(second.files.read(running.id).error)
    assert worker_pid(second.files.folder(running.id)) is None
    second.retry(running.id)
    pid = wait_for_process(second, running)
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    wait_for_state(second, running, "succeeded")
    done = second.files.read(running.id)
    (manifest,) = ArtifactStore(artifacts_dir).versions("tiny")
    assert (done.calibrator, done.activated, done.progress) == (manifest.id, True, 1)
    assert done.error is None
    assert manifest.note == "a trial"
    report = second.files.report(running.id)
    assert report is not None
    assert report["chosen"] == "temperature"
    assert not has_upload(second, running)
    assert has_upload(second, queued)


def test_options_of_a_method_hold_for_a_retried_job(make_jobs, request_for, artifacts_dir):
    first = make_jobs()
    asked = request_for(method="selective", routing="hard", mispredicted_temperature=3.0)
    job = submit(first, asked)
    first.stop()
    assert state_of(first, job) == "interrupted"

    second = make_jobs()
    second.retry(job.id)
    wait_for_state(second, job, "succeeded")
    (manifest,) = ArtifactStore(artifacts_dir).versions("tiny")
    assert manifest.options == {"routing": "hard", "mispredicted_temperature": 3.0}
    assert manifest.summary == pytest.approx({"t_ok": 1, "t_mis": 3})


def test_job_of_a_running_server_is_not_recovered(make_jobs, make_settings, request_for):
    living, started = Jobs(make_settings()), make_jobs()
    living.files.open()  # alive, without a running job
    job = submit(living, request_for())
    coming = living.reserve()
    started.recover()

    assert state_of(started, job) == "queued"
    assert coming.exists()
    # A process releases its lock when it ends; here it is released explicitly.
    assert living.files.owner_lock is not None
    fcntl.flock(living.files.owner_lock, fcntl.LOCK_UN)
    started.recover()
    assert state_of(started, job) == "interrupted"
    assert not coming.exists()
    living.files.close()


def test_fit_published_before_its_server_died_is_succeeded(make_jobs, make_settings, request_for):
    dead, started = Jobs(make_settings()), make_jobs()
    dead.files.open()
    job = submit(dead, request_for())
    dead.files.write(job.model_copy(update={"state": "running"}))
    result = '{"calibrator": "20260101T000000Z-temperature-abcdef", "activated": true}'
    (dead.files.folder(job.id) / "result.json").write_text(result)
    dead.files.close()
    started.recover()

    assert state_of(started, job) == "succeeded"
    assert started.files.read(job.id).activated


def test_version_of_a_fit_that_ended_before_its_result_stays_active(
    make_jobs, make_settings, request_for, models_dir, artifacts_dir
):
    dead, started = Jobs(make_settings()), make_jobs()
    dead.files.open()
    job = submit(dead, request_for())
    dead.files.write(job.model_copy(update={"state": "running"}))
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)  # as the fit has done
    dead.files.close()
    started.recover()

    store = ArtifactStore(artifacts_dir)
    assert (state_of(started, job), store.active_id("tiny")) == ("interrupted", version)
    started.retry(job.id)
    wait_for_state(started, job, "succeeded")
    assert started.files.read(job.id).calibrator != version
    assert len(store.versions("tiny")) == 2


def test_fit_ignores_a_signal_once_it_is_publishing():
    earlier = signal.getsignal(signal.SIGTERM)
    progress = Progress(io.StringIO(), 0.0)
    try:
        progress.fit("fitting", 0.5)
        assert signal.getsignal(signal.SIGTERM) == earlier
        progress.fit(PUBLISHING, 1.0)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_oldest_records_are_deleted(make_jobs, request_for):
    jobs = make_jobs(job_limit=KEPT + 10)
    made = []
    for _ in range(KEPT + 3):
        incoming = jobs.reserve()
        made.append(jobs.files.create(incoming, request_for()))
        jobs.files.write(made[-1].model_copy(update={"state": "succeeded"}))
    jobs.files.prune()

    assert jobs.files.ids() == [job.id for job in made[:2:-1]]


@pytest.mark.parametrize(
    "name", ["../tiny", "", ".lock", "20260101T000000000000Z-abcdef", "a" * 999]
)
def test_invalid_job_id_is_not_found(make_jobs, name):
    with pytest.raises(NotFoundError, match="expected the id of a calibration job"):
        make_jobs().files.read(name)


def test_a_job_of_an_earlier_release_is_not_retried(make_jobs, request_for):
    first = make_jobs()
    job = submit(first, request_for())
    wait_for_process(first, job)
    first.stop()
    jobs = make_jobs()
    path = jobs.files.folder(job.id) / "request.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weather": True}))

    with pytest.raises(ConflictError, match="another release: upload it again"):
        jobs.retry(job.id)
    assert state_of(jobs, job) == "interrupted"


def test_uploads_kept_for_a_retry_have_a_byte_budget(make_settings, request_for):
    jobs = Jobs(make_settings(retry_bytes=20_000))
    jobs.files.open()
    logits, labels = (npy(array) for array in overconfident(10, 8, 8))
    assert 2 * (len(logits) + len(labels)) < 20_000 < 3 * (len(logits) + len(labels))
    queued = [submit(jobs, request_for()) for _ in range(4)]
    for job in queued[:3]:
        jobs._end(job, "failed", "for a test")

    assert [has_upload(jobs, job) for job in queued] == [False, True, True, True]
    with pytest.raises(ConflictError, match="with its upload"):
        jobs.retry(queued[0].id)
    jobs._end(queued[3], "cancelled", None)
    assert [has_upload(jobs, job) for job in queued] == [False, True, True, False]
    jobs.files.close()
