"""`segcal jobs`: list, cancel and retry, local and over HTTP."""

from pathlib import Path

import numpy as np
import pytest

from app.inference.model_card import read_model_folder
from app.jobs.queue import Jobs
from app.jobs.store import UPLOAD, FitRequest
from app.schemas.fit import State
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from tests.cli.test_main import Run, run
from tests.conftest import MakeServer
from tests.factories.validation_data import overconfident

__all__ = ["run"]  # the fixture

TOKEN = "a token for tests"
SERVICE_TOKEN = ["--token", TOKEN]


@pytest.fixture
def ended(models_dir: Path, artifacts_dir: Path) -> "list[str]":
    """Write a failed and an interrupted job with their uploads; return their ids."""
    return [write_job(models_dir, artifacts_dir, state) for state in ("failed", "interrupted")]


def write_job(models_dir: Path, artifacts_dir: Path, state: State) -> str:
    """Write an ended job of a service that has exited, with its upload; return its id."""
    jobs = Jobs(load_settings(models_dir=models_dir, artifacts_dir=artifacts_dir))
    jobs.files.open()
    incoming = jobs.reserve()
    logits, labels = overconfident(16, 16, 16)
    np.save(incoming / UPLOAD / "logits.npy", logits)
    np.save(incoming / UPLOAD / "labels.npy", labels)
    folder = read_model_folder(models_dir / "tiny")
    request = FitRequest(
        method="temperature", model="tiny", model_sha256=folder.sha256, ignore_index=255
    )
    job = jobs.files.create(incoming, request)
    jobs.files.write(
        job.model_copy(update={"state": state, "error": f"expected logits [N,K,h,w], got {state}"})
    )
    jobs.files.close()
    return job.id


def rows(text: str) -> dict[str, list[str]]:
    """Return the words of a table's rows behind the first one, by it."""
    lines = [line.split() for line in text.splitlines()[1:]]
    return {words[0]: words[1:] for words in lines}


def test_jobs_are_listed_with_model_and_state(run: Run, ended, make_server: MakeServer):
    local = run("jobs", "list")
    remote = run("jobs", "list", "--url", make_server(admin_token=TOKEN))

    assert local.code == 0, local.err
    assert remote.out == local.out
    listed = rows(local.out)
    assert list(listed) == ended[::-1]
    assert listed[ended[0]][:4] == ["tiny", "temperature", "failed", "0%"]
    assert "expected logits [N,K,h,w], got failed" in local.out


def test_without_jobs_the_list_is_empty(run: Run):
    result = run("jobs", "list")

    assert (result.code, rows(result.out)) == (0, {})
    missing = run("jobs", "cancel", "20260101T000000000000Z-abcdef")
    assert missing.code == 2
    assert "expected the id of a calibration job" in missing.err


def test_cancel_deletes_the_upload(run: Run, ended, artifacts_dir, make_server: MakeServer):
    service = ["--url", make_server(admin_token=TOKEN)]
    local = run("jobs", "cancel", ended[0])
    remote = run("jobs", "cancel", ended[1], *service, *SERVICE_TOKEN)

    assert (local.code, remote.code) == (0, 0), remote.err
    for job, result in zip(ended, (local, remote), strict=True):
        assert f"{job} is cancelled" in result.err
        assert not (artifacts_dir / ".jobs" / job / UPLOAD).exists()
    again = run("jobs", "cancel", ended[0])
    assert again.code == 2
    assert "expected a job that has not ended, got one cancelled" in again.err


def test_retry_fits_with_the_stored_upload(run: Run, ended, artifacts_dir, make_server: MakeServer):
    local = run("jobs", "retry", ended[0])
    service = ["--url", make_server(admin_token=TOKEN)]
    rejected = run("jobs", "retry", ended[1], *service, "--token", "wrong")
    remote = run("jobs", "retry", ended[1], *service, *SERVICE_TOKEN)
    newest, oldest = ArtifactStore(artifacts_dir).versions("tiny")

    assert (local.code, remote.code) == (0, 0), local.err + remote.err
    assert "expected a bearer token" in rejected.err
    assert f"{oldest.id} is active: better: " in local.err
    assert f"{newest.id} is " in remote.err
    assert newest.summary == pytest.approx(oldest.summary)
    assert {row[2] for row in rows(run("jobs", "list").out).values()} == {"succeeded"}
    assert "expected a failed or interrupted job" in run("jobs", "retry", ended[0]).err
