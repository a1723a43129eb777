"""Killed at every step: what is stored is whole, and the service goes on with it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.queue import Jobs
from app.jobs.store import UPLOAD, Job, State
from app.storage.artifacts import ArtifactStore
from tests.factories.service import open_client, post, publish_temperature, thirds
from tests.faults.conftest import JobRunner
from tests.faults.steps import Order, settings_of, submit
from tests.faults.stored import assert_clean, assert_whole

MANY = 2000  # steps; no work here takes as many


def until_it_ends(
    attempt: JobRunner, work: str, folder: Path, prepare: Callable[[], object] = int, every: int = 1
) -> Iterator[int]:
    """Do a work again and again, killed one step later each time, until it comes to its end."""
    for step in range(1, MANY, every):
        prepare()
        ended = attempt(Order(work, str(folder), step=step))
        yield step
        if ended == "finished":
            assert step > 10, "expected the work to be killed a few times"
            return
    raise AssertionError(f"{work} did not end within {MANY} steps")


def test_publish_and_activation_killed_at_every_step_leave_the_old_or_the_new(folder, attempt):
    store = ArtifactStore(folder / "artifacts")
    active, known = assert_whole(folder), {m.id for m in store.versions("tiny")}
    for step in until_it_ends(attempt, "publish_and_activate", folder):
        before, active = active, assert_whole(folder)
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
def test_publish_killed_in_the_middle_of_a_write_leaves_what_was(folder, attempt, size):
    active = assert_whole(folder)
    ended = attempt(Order("publish_and_activate", str(folder), file_bytes=size))

    assert ended == "killed"
    assert assert_whole(folder) == active
    assert_clean(folder)


def test_history_killed_in_the_middle_of_a_line_goes_on_behind_it(folder, attempt):
    active = assert_whole(folder)
    path = folder / "artifacts" / "tiny" / "history.jsonl"
    path.write_text(path.read_text() * 20)  # longer than any other file
    ended = attempt(Order("publish_and_activate", str(folder), file_bytes=path.stat().st_size + 30))
    torn = path.read_text().splitlines()[-1]

    assert (ended, len(torn)) == ("killed", 30)
    assert assert_whole(folder) == active
    assert attempt(Order("publish_and_activate", str(folder))) == "finished"
    *_, kept, last = path.read_text().splitlines()
    assert kept == torn
    assert json.loads(last)["calibrator"] == assert_whole(folder) != active


def augmented(folder: Path) -> Iterator[Path]:
    """Give the same folder anew each time, for work that takes longer the more there is."""
    for number in range(MANY):
        copy = folder.with_name(f"{folder.name}-{number}")
        shutil.copytree(folder, copy)
        yield copy
        shutil.rmtree(copy)


def test_deletion_killed_at_every_step_deletes_all_of_a_version_or_nothing(folder, attempt):
    publish_temperature(folder / "artifacts", folder / "models" / "tiny", 4, activate=False)
    active = ArtifactStore(folder / "artifacts").active_id("tiny")
    for step, copy in enumerate(augmented(folder), 1):
        ended = attempt(Order("delete", str(copy), step=step))
        assert assert_whole(copy) == active
        assert_clean(copy)
        if ended == "finished":
            break
    assert step > 10
    assert [m.id for m in ArtifactStore(copy / "artifacts").versions("tiny")] == [active]


# Jobs


def restarted(folder: Path) -> Jobs:
    """The jobs as the next server finds them."""
    jobs = Jobs(settings_of(folder))
    jobs.files.open()
    jobs.recover()
    return jobs


def assert_jobs_whole(jobs: Jobs) -> list[Job]:
    """Every job that is there can be read, and none is taken for one at work."""
    found = jobs.files.all()
    assert [job.id for job in found] == jobs.files.ids()
    assert {job.state for job in found} <= {"interrupted", "succeeded"}
    for job in found:
        upload = jobs.files.folder(job.id) / UPLOAD
        assert upload.exists() == (job.state == "interrupted")
    assert not list(jobs.files.root.glob(".incoming-*"))
    assert len(list(jobs.files.root.glob(".owner-*"))) == 1  # ours
    return found


def test_job_killed_at_every_step_is_interrupted_or_done_and_others_stay(folder, attempt):
    assert attempt(Order("run_a_job", str(folder))) == "finished"
    (earlier,) = settled(folder)
    seen: set[State] = set()
    for step, copy in enumerate(augmented(folder), 1):
        ended = attempt(Order("run_a_job", str(copy), step=step))
        *new, old = settled(copy)
        assert old == earlier
        seen.update(job.state for job in new)
        if ended == "finished":
            break
    assert step > 30
    assert seen == {"interrupted", "succeeded"}
    assert [job.state for job in new] == ["succeeded"]


def settled(folder: Path) -> list[Job]:
    """Start anew, hold the jobs to their promises, and give them."""
    jobs = restarted(folder)
    found = assert_jobs_whole(jobs)
    jobs.files.close()
    return found


def test_fit_killed_at_steps_all_along_leaves_a_job_to_be_run_again(folder, attempt):
    active = assert_whole(folder)
    jobs = restarted(folder)
    job = ""

    def another() -> None:
        nonlocal job
        dead = Jobs(settings_of(folder))
        dead.files.open()
        job = submit(dead, folder)
        dead.files.write(dead.files.read(job).model_copy(update={"state": "running"}))
        dead.files.close()

    for step in until_it_ends(attempt, "fit", folder, another, every=8):
        before, active = active, assert_whole(folder)
        assert_clean(folder)
        jobs.recover()
        ended = jobs.files.read(job)
        if ended.state == "succeeded":
            assert ended.calibrator == active != before
            continue
        assert ended.state == "interrupted"
        if step % 32 == 1:
            assert jobs.retry(job).state == "queued"
            assert attempt(Order("fit", str(folder))) == "finished"
            active = assert_whole(folder)
            jobs.files.write(jobs.files.read(job).model_copy(update={"state": "interrupted"}))
    jobs.recover()
    assert jobs.files.read(job).state == "succeeded"
    jobs.files.close()
