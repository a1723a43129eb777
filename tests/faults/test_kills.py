"""A process killed at any step leaves valid files, with which the service starts again."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.queue import Jobs
from app.jobs.store import UPLOAD, Job
from app.schemas.fit import State
from app.storage.artifacts import ArtifactStore
from tests.factories.service import open_client, post, publish_temperature, thirds
from tests.faults.conftest import RunTask
from tests.faults.steps import Task, settings_of, submit
from tests.faults.stored import assert_clean, assert_versions_load

MAX_STEPS = 2000  # more than any task here takes


def kill_at_each_step(
    run_task: RunTask,
    action: str,
    folder: Path,
    prepare: Callable[[], object] = int,
    every: int = 1,
) -> Iterator[int]:
    """Run an action repeatedly, killed `every` steps later each time, until it finishes."""
    for step in range(1, MAX_STEPS, every):
        prepare()
        ended = run_task(Task(action, str(folder), step=step))
        yield step
        if ended == "finished":
            assert step > 10, "expected the action to be killed a few times"
            return
    raise AssertionError(f"{action} did not end within {MAX_STEPS} steps")


def test_publish_killed_at_each_step_leaves_old_or_new_active_version(folder, run_task):
    store = ArtifactStore(folder / "artifacts")
    active, known = assert_versions_load(folder), {m.id for m in store.versions("tiny")}
    for step in kill_at_each_step(run_task, "publish_and_activate", folder):
        before, active = active, assert_versions_load(folder)
        listed = {manifest.id for manifest in store.versions("tiny")}
        assert active in {before} | (listed - known)
        known = listed
        if step % 12 == 0:
            with open_client(settings_of(folder)) as client:
                assert post(client, thirds()).headers["x-calibrator"] == active
        assert_clean(folder)
        assert store.active_id("tiny") == active
    assert active != before


@pytest.mark.parametrize("size", [1, 20, 60, 100, 150, 250, 400])
def test_publish_killed_during_a_write_leaves_active_version(folder, run_task, size):
    active = assert_versions_load(folder)
    ended = run_task(Task("publish_and_activate", str(folder), file_bytes=size))

    assert ended == "killed"
    assert assert_versions_load(folder) == active
    assert_clean(folder)


def test_history_continues_after_incomplete_line(folder, run_task):
    active = assert_versions_load(folder)
    path = folder / "artifacts" / "tiny" / "history.jsonl"
    path.write_text(path.read_text() * 20)  # longer than any other file
    ended = run_task(Task("publish_and_activate", str(folder), file_bytes=path.stat().st_size + 30))
    torn = path.read_text().splitlines()[-1]

    assert (ended, len(torn)) == ("killed", 30)
    assert assert_versions_load(folder) == active
    assert run_task(Task("publish_and_activate", str(folder))) == "finished"
    *_, kept, last = path.read_text().splitlines()
    assert kept == torn
    assert json.loads(last)["calibrator"] == assert_versions_load(folder) != active


def copies_of(folder: Path) -> Iterator[Path]:
    """Copy a folder for each attempt, as the action takes longer the more versions there are."""
    for number in range(MAX_STEPS):
        copy = folder.with_name(f"{folder.name}-{number}")
        shutil.copytree(folder, copy)
        yield copy
        shutil.rmtree(copy)


def test_deletion_killed_at_each_step_deletes_whole_version_or_nothing(folder, run_task):
    publish_temperature(folder / "artifacts", folder / "models" / "tiny", 4, activate=False)
    active = ArtifactStore(folder / "artifacts").active_id("tiny")
    for step, copy in enumerate(copies_of(folder), 1):
        ended = run_task(Task("delete", str(copy), step=step))
        assert assert_versions_load(copy) == active
        assert_clean(copy)
        if ended == "finished":
            break
    assert step > 10
    assert [m.id for m in ArtifactStore(copy / "artifacts").versions("tiny")] == [active]


# Jobs


def restarted(folder: Path) -> Jobs:
    """Return the jobs after the recovery at the next server's start."""
    jobs = Jobs(settings_of(folder))
    jobs.files.open()
    jobs.recover()
    return jobs


def assert_jobs_consistent(jobs: Jobs) -> list[Job]:
    """Assert that every job can be read and none counts as running; return the jobs."""
    found = jobs.files.all()
    assert [job.id for job in found] == jobs.files.ids()
    assert {job.state for job in found} <= {"interrupted", "succeeded"}
    for job in found:
        upload = jobs.files.folder(job.id) / UPLOAD
        assert upload.exists() == (job.state == "interrupted")
    assert not list(jobs.files.root.glob(".incoming-*"))
    assert len(list(jobs.files.root.glob(".owner-*"))) == 1  # of this process
    return found


def test_job_killed_at_each_step_is_interrupted_or_succeeded(folder, run_task):
    assert run_task(Task("run_job", str(folder))) == "finished"
    (earlier,) = recovered_jobs(folder)
    states: set[State] = set()
    for step, copy in enumerate(copies_of(folder), 1):
        ended = run_task(Task("run_job", str(copy), step=step))
        *new, old = recovered_jobs(copy)
        assert old == earlier
        states.update(job.state for job in new)
        if ended == "finished":
            break
    assert step > 30
    assert states == {"interrupted", "succeeded"}
    assert [job.state for job in new] == ["succeeded"]


def recovered_jobs(folder: Path) -> list[Job]:
    """Recover the jobs, assert that they are consistent, and return them."""
    jobs = restarted(folder)
    found = assert_jobs_consistent(jobs)
    jobs.files.close()
    return found


def test_fit_killed_at_any_step_leaves_job_that_can_be_retried(folder, run_task):
    active = assert_versions_load(folder)
    jobs = restarted(folder)
    job = ""

    def another() -> None:
        nonlocal job
        dead = Jobs(settings_of(folder))
        dead.files.open()
        job = submit(dead, folder)
        dead.files.write(dead.files.read(job).model_copy(update={"state": "running"}))
        dead.files.close()

    for step in kill_at_each_step(run_task, "fit", folder, another, every=8):
        before, active = active, assert_versions_load(folder)
        assert_clean(folder)
        jobs.recover()
        ended = jobs.files.read(job)
        if ended.state == "succeeded":
            assert ended.calibrator == active != before
            continue
        assert ended.state == "interrupted"
        if step % 32 == 1:
            assert jobs.retry(job).state == "queued"
            assert run_task(Task("fit", str(folder))) == "finished"
            active = assert_versions_load(folder)
            jobs.files.write(jobs.files.read(job).model_copy(update={"state": "interrupted"}))
    jobs.recover()
    assert jobs.files.read(job).state == "succeeded"
    jobs.files.close()
