"""A full disk gives a 507, and stored versions remain valid."""

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from app.errors import StorageError
from tests.api.test_calibrate import ADMIN, TOKEN, UPLOAD, assert_problem, jobs_folder, send
from tests.conftest import MakeClient
from tests.factories.jobs import wait_for
from tests.factories.service import assert_serves, encoded, publish_temperature
from tests.faults.steps import Task, publish_and_activate
from tests.faults.stored import assert_no_partial_files, assert_versions_load, history

BLOCK = 4096
DISK = 1 << 20


@pytest.mark.parametrize("size", [0, 20, 60, 100, 150, 250, 400])
def test_publish_on_full_disk_changes_nothing(folder, run_task, size):
    active = assert_versions_load(folder)
    ended = run_task(Task("publish_and_activate", str(folder), file_bytes=size, fatal=False))

    assert ended == "disk full"
    assert assert_versions_load(folder) == active
    assert_no_partial_files(folder)


def test_activation_without_history_entry_does_not_happen(folder, run_task):
    active = assert_versions_load(folder)
    path = folder / "artifacts" / "tiny" / "history.jsonl"
    path.write_text(path.read_text() * 20)  # longer than any other file
    before = path.read_bytes()
    size = len(before) + 30
    ended = run_task(Task("publish_and_activate", str(folder), file_bytes=size, fatal=False))

    assert ended == "disk full"
    assert assert_versions_load(folder) == active
    assert path.read_bytes() == before


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB at the artefacts' folder, with its calibrator."""
    artifacts = folder / "artifacts"
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(artifacts)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        publish_temperature(artifacts, folder / "models" / "tiny", 2)
        yield artifacts
    finally:
        subprocess.run(["umount", "--lazy", str(artifacts)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for `leave` bytes; return the file that fills it."""
    taken = disk / "taken"
    taken.unlink(missing_ok=True)
    room = os.statvfs(disk)
    taken.write_bytes(bytes(room.f_bavail * room.f_bsize - leave))
    return taken


def test_disk_filling_up_during_publish_changes_nothing(folder, small_disk):
    active = assert_versions_load(folder)
    for blocks in range(20):
        fill(small_disk, blocks * BLOCK)
        try:
            publish_and_activate(folder)
        except StorageError:
            assert assert_versions_load(folder) == active
            assert_no_partial_files(folder)
        else:
            break
    assert 3 < blocks < 19
    assert assert_versions_load(folder) != active
    assert len(history(folder)) == 2


def test_upload_that_fills_disk_is_removed_and_service_continues(
    folder, small_disk, make_client: MakeClient
):
    client = make_client(admin_token=TOKEN)
    head = b'--x\r\nContent-Disposition: form-data; name="logits"; filename="l"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    declared = client.post("/calibrate", content=head + bytes(2 * DISK), headers=ADMIN | kind)
    streamed = client.post(
        "/calibrate", content=iter([head, *[bytes(DISK // 4)] * 8]), headers=ADMIN | kind
    )
    assert streamed.request.headers["transfer-encoding"] == "chunked"

    for answer in (declared, streamed):
        assert_problem(answer, 507, "no space left")
    assert jobs_folder(small_disk) == []
    assert_serves(client)
    answer = send(client)
    assert answer.status_code == 202
    assert client.delete(answer.headers["location"], headers=ADMIN).status_code == 200


def test_fit_on_full_disk_is_marked_failed_once_disk_has_space(
    folder, small_disk, make_client: MakeClient
):
    client = make_client(admin_token=TOKEN)
    active = assert_versions_load(folder)
    answer: httpx2.Response = send(client, UPLOAD, method="temperature", activate="always")
    taken = fill(small_disk, 0)
    location = answer.headers["location"]
    jobs = client.app.state.segcal.jobs  # type: ignore[attr-defined]
    wait_for(lambda: jobs._endings, "the fit to end")
    assert client.get(location).json()["state"] in ("queued", "running")
    assert_serves(client)
    taken.unlink()
    wait_for(lambda: client.get(location).json()["state"] == "failed", "the end to be noted")

    assert "no space left" in client.get(location).json()["error"]
    assert assert_versions_load(folder) == active
    assert_no_partial_files(folder)
    again = client.post(f"{location}/retry", headers=ADMIN)
    assert again.status_code == 202


@pytest.fixture
def full_temporary_folder() -> Iterator[None]:
    """Let each write of a file beyond 64 KiB fail, as on a full disk."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


def test_full_temporary_folder_is_a_507(make_client: MakeClient, full_temporary_folder):
    client = make_client()
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    wanted = {"Accept": "application/x-npz"}  # above 256 KiB, it waits for its client on disk
    answer = client.post("/segment", files={"image": encoded(noise)}, headers=wanted)

    assert_problem(answer, 507, "no space left")
    assert_serves(client)
