"""`segcal serve --processes 2`: one port, one folder of artifacts, signals, ends of processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.cli.processes import process_environment
from app.process_group import ProcessGroup
from app.settings import load_settings
from app.storage.files import try_locked
from tests.factories.jobs import PATIENCE_S, wait_for
from tests.factories.models import write_onnx_model
from tests.factories.service import SATURATED_AT_2, encoded, post, publish_temperature, thirds
from tests.factories.validation_data import npz, overconfident
from tests.serving.test_drift_monitor import reference_to

TOKEN = "a token for tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Group:
    """A supervisor of two server processes, on a folder of its own."""

    folder: Path
    supervisor: subprocess.Popen[bytes]
    url: str

    @property
    def pids(self) -> list[int]:
        """Process ids of the server processes, by the order in which they were started."""
        path = Path(f"/proc/{self.supervisor.pid}/task/{self.supervisor.pid}/children")
        return sorted(int(word) for word in path.read_text().split())

    @property
    def jobs(self) -> Path:
        """Folder of the jobs."""
        return self.folder / "artifacts" / ".jobs"

    def client(self) -> httpx2.Client:
        """Open a client whose requests each have a connection of their own."""
        return httpx2.Client(base_url=self.url, timeout=PATIENCE_S, headers={"Connection": "close"})

    @contextmanager
    def only(self, index: int) -> Iterator[httpx2.Client]:
        """Let one process alone answer for the block; the other one is suspended."""
        suspended = self.pids[1 - index]
        self._suspend(suspended)
        try:
            with self.client() as client:
                yield client
        finally:
            os.kill(suspended, signal.SIGCONT)

    def _suspend(self, pid: int) -> None:
        """Suspend a process while it does not hold the lock of the jobs, which the other needs."""
        lock = self.jobs / ".lock"
        wait_for(lock.exists, "the folder of jobs")
        while True:
            os.kill(pid, signal.SIGSTOP)
            wait_for(partial(is_suspended, pid), "the process to be suspended")
            with try_locked(lock) as free:
                if free:
                    return
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)

    def wait_until_all_serve(self) -> None:
        """Wait until both processes accept connections, with their models loaded."""
        wait_for(lambda: len(self.pids) == 2, "two processes")
        for index in range(2):
            with self.only(index) as client:
                wait_for(partial(responds, client), f"process {index} to be ready")


def is_suspended(pid: int) -> bool:
    """Return whether all threads of a process are stopped."""
    files = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(file.read_text().rpartition(") ")[2].startswith("T") for file in files)


def responds(client: httpx2.Client, path: str = "/readyz") -> bool:
    with suppress(httpx2.TransportError):
        return client.get(path, timeout=1).status_code == 200
    return False


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Group]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    chosen = {
        "MODELS_DIR": str(folder / "models"), "ARTIFACTS_DIR": str(folder / "artifacts"),
        "ADMIN_TOKEN": TOKEN, "THREADS": "1", **settings,
    }  # fmt: skip
    environment = os.environ | {f"SEGCAL_{name}": value for name, value in chosen.items()}
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), "--processes", "2"]
    with (folder / "server.log").open("wb") as log:
        supervisor = subprocess.Popen(
            command, env=environment | {"TMPDIR": str(folder / "tmp")}, stdout=log, stderr=log
        )
    try:
        yield Group(folder, supervisor, f"http://127.0.0.1:{port}")
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    folder = tmp_path_factory.mktemp("processes")
    write_onnx_model(folder / "models", "tiny")
    with serving(folder) as started:
        started.wait_until_all_serve()
        yield started


def answered(client: httpx2.Client) -> float:
    """Return the number of successful segmentations that the metrics count."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "segcal_http_requests_total"
        and (sample.labels["route"], sample.labels["status"]) == ("/segment", "200")
    )


def gauge(client: httpx2.Client, name: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    values = [s.value for family in families for s in family.samples if s.name == name]
    assert len(values) == 1, name
    return values[0]


def test_result_is_read_from_another_process(group: Group):
    with group.only(0) as first:
        answer = post(first, thirds())
    with group.only(1) as second:
        mask = second.get(answer.json()["links"]["mask"])
        overlay = second.get(answer.json()["links"]["overlay"])

    assert (mask.status_code, overlay.status_code) == (200, 200)


def test_metrics_are_summed_over_processes(group: Group):
    with group.only(0) as client:
        before = answered(client)
        post(client, thirds())
        # A request is counted once its response was sent.
        wait_for(lambda: answered(client) == before + 1, "the request to be counted")
    with group.only(1) as client:
        post(client, thirds())
        wait_for(lambda: answered(client) == before + 2, "both requests to be counted")
        limit = gauge(client, "segcal_queue_limit")
    with group.only(0) as client:
        assert answered(client) == before + 2

    assert limit == load_settings().queue_limit


def test_drift_is_measured_over_the_answers_of_all_processes(group: Group):
    known = [(np.full((8, 12), i % 3, np.uint8), np.full((8, 12), SATURATED_AT_2, np.float32))
             for i in range(24)]  # fmt: skip
    publish_temperature(
        group.folder / "artifacts", group.folder / "models" / "tiny", 2,
        reference=reference_to(known),
    )  # fmt: skip
    window = load_settings().drift_window
    for index in range(2):
        with group.only(index) as client:
            for _ in range(window // 2):
                post(client, thirds())

    def is_measured() -> bool:
        with group.client() as client:
            return "segcal_drift_divergence{" in client.get("/metrics").text

    wait_for(is_measured, "both halves of a window to be merged")


def test_job_of_one_process_is_seen_and_cancelled_in_another(group: Group):
    logits, labels = overconfident(12, 8, 8)
    files = {"logits": ("logits.npz", npz(logits=logits, labels=labels))}
    with try_locked(group.jobs / ".fitting") as held:  # so that the job stays queued
        assert held
        with group.only(1) as client:
            job = client.post("/calibrate", files=files, headers=ADMIN).headers["location"]
        with group.only(0) as client:
            assert client.get(job).json()["state"] == "queued"
            cancelled = client.delete(job, headers=ADMIN)
        assert cancelled.status_code == 200
        with group.client() as client:
            wait_for(lambda: client.get(job).json()["state"] == "cancelled", "the cancellation")


def test_reload_through_one_process_loads_models_in_all(group: Group):
    write_onnx_model(group.folder / "models", "another")
    with group.client() as client:
        reloaded = client.post("/models/reload", headers=ADMIN)
    assert reloaded.json()["loaded"] == ["another"]

    for index in range(2):
        with group.only(index) as client:
            wait_for(partial(responds, client, "/models/another"), "the model")


def test_killed_process_is_replaced_and_the_others_serve(tmp_path: Path):
    write_onnx_model(tmp_path / "models", "tiny")
    with serving(tmp_path) as group:
        group.wait_until_all_serve()
        killed, other = group.pids
        os.kill(killed, signal.SIGKILL)
        with group.client() as client:
            # The new process accepts connections only with its models loaded.
            wait_for(lambda: len(group.pids) == 2 and killed not in group.pids, "a replacement")
            assert {post(client, encoded(thirds())).status_code for _ in range(20)} == {200}
        assert other in group.pids
        group.wait_until_all_serve()

        servers = group.pids
        group.supervisor.send_signal(signal.SIGTERM)
        assert group.supervisor.wait(PATIENCE_S) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in servers)
    assert not list((tmp_path / "tmp").glob("segcal-*"))


def test_processes_end_with_a_killed_supervisor(tmp_path: Path):
    write_onnx_model(tmp_path / "models", "tiny")
    with serving(tmp_path) as group:
        wait_for(lambda: len(group.pids) == 2, "two processes")
        servers = group.pids
        group.supervisor.kill()
        group.supervisor.wait()
        wait_for(lambda: not any(runs(pid) for pid in servers), "the end of the server processes")


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_wrong_setting_ends_the_supervisor_with_its_status(tmp_path: Path):
    (tmp_path / "models").mkdir()
    with serving(tmp_path) as group:
        assert group.supervisor.wait(PATIENCE_S) == 2
    assert "SEGCAL_MODELS_DIR" in (tmp_path / "server.log").read_text()


def test_port_in_use_is_named(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "app", "serve", "--port", port, "--processes", "2"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"--port: expected a free port of 127.0.0.1, got {port}" in ended.stderr


def test_each_process_gets_its_part_of_the_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings = load_settings(
        queue_limit=65, connection_limit=512, client_connection_limit=128, memory_bytes=8 << 30,
        upload_buffer_bytes=256 << 20, max_upload_bytes=32 << 20, result_bytes=0, threads=16,
        workers=16, grpc_port=9000,
    )  # fmt: skip
    for index in range(4):
        environment = process_environment(settings, ProcessGroup(tmp_path, 4, index))
        for name in list(os.environ):
            if name.startswith("SEGCAL_"):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            if name.startswith("SEGCAL_"):
                monkeypatch.setenv(name, value)
        part = load_settings()

        assert (part.queue_limit, part.connection_limit, part.client_connection_limit) == (
            17,
            128,
            32,
        )
        assert (part.memory_bytes, part.upload_buffer_bytes, part.result_bytes) == (
            2 << 30,
            64 << 20,
            0,
        )
        assert (part.threads, part.workers, part.fit_threads) == (16, 4, 8)
        assert part.grpc_port == (9000 if index == 0 else None)
        assert part.results_dir == tmp_path / "results"


def test_upload_buffer_of_a_process_holds_the_largest_image(tmp_path: Path):
    settings = load_settings(upload_buffer_bytes=40 << 20, max_upload_bytes=32 << 20)
    environment = process_environment(settings, ProcessGroup(tmp_path, 4))
    assert int(environment["SEGCAL_UPLOAD_BUFFER_BYTES"]) == (32 << 20) + (64 << 10)
