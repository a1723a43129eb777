"""`deploy/haproxy/haproxy.cfg` in front of two server processes, one of which is killed."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from app.settings import Settings, load_settings
from tests.api.test_server import Served, free_port, serving
from tests.factories.jobs import wait_for
from tests.factories.models import write_onnx_model
from tests.factories.service import assert_problem, encoded, post, thirds, wait_until_ready

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
TEMPLATE = "server-template replica 1-16 segcal:8000 resolvers replicas init-addr none"
TOKEN = "a token for tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="expected haproxy: apt install haproxy")


@dataclass
class Fleet:
    """Two replicas, and a client of the balancer before them."""

    replicas: list[Served]
    client: httpx2.Client


def check(path: Path) -> None:
    checked = subprocess.run(
        [str(HAPROXY), "-c", "-f", path], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@contextmanager
def balancing(folder: Path, ports: list[int]) -> Iterator[str]:
    """Run HAProxy with the configuration, on ports of the test; yields its address."""
    port = free_port()
    servers = "\n".join(f"    server r{at} 127.0.0.1:{at}" for at in ports)
    text = CONFIGURATION.read_text("utf-8")
    for old, new in (("bind :8000", f"bind 127.0.0.1:{port}"), (f"    {TEMPLATE}", servers)):
        assert old in text
        text = text.replace(old, new)
    path = folder / "haproxy.cfg"
    path.write_text(text, "utf-8")
    check(path)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([str(HAPROXY), "-db", "-f", path], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Start two replicas that share models, artifacts and results, and HAProxy."""
    with ExitStack() as stack:
        write_onnx_model(tmp_path / "models", "tiny")
        replicas = [
            stack.enter_context(
                serving(tmp_path, ADMIN_TOKEN=TOKEN, RESULTS_DIR=str(tmp_path / "results"))
            )
            for _ in range(2)
        ]
        for replica in replicas:
            replica.first_answer("/healthz")
            wait_until_ready(replica.client)
        url = stack.enter_context(balancing(tmp_path, [replica.port for replica in replicas]))
        client = stack.enter_context(httpx2.Client(base_url=url, timeout=60))
        wait_for(lambda: answers(client), "the balancer to find the replicas")
        yield Fleet(replicas, client)


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def segmentations(replica: Served) -> int:
    """Count the successful requests to /segment of a replica."""
    lines = replica.client.get("/metrics").text.splitlines()
    found = [line for line in lines if "_requests_total" in line and '"/segment"' in line]
    return sum(int(float(line.split()[-1])) for line in found if 'status="200"' in line)


@needs_haproxy
def test_configuration_is_accepted_by_haproxy():
    check(CONFIGURATION)


def test_configuration_fits_the_settings():
    text = CONFIGURATION.read_text("utf-8")
    settings = load_settings()
    assert f"gt {settings.max_upload_bytes + (1 << 20)} " in text
    assert settings.request_timeout_s < 75 <= settings.idle_timeout_s + 15
    assert settings.shutdown_timeout_s < 35
    assert "timeout server 75s" in text
    assert "hard-stop-after 35s" in text


def test_fleet_replaces_the_port_of_the_replicas():
    yaml = pytest.importorskip("yaml", reason="expected PyYAML: pip install -e '.[dev]'")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Reads compose's own tags as their values."""

    Loader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))
    fleet: dict[str, Any] = yaml.load(
        (ROOT / "docker-compose.fleet.yml").read_text("utf-8"), Loader
    )
    replica, balancer = fleet["services"]["segcal"], fleet["services"]["haproxy"]
    assert replica["ports"] == []
    names = {f"SEGCAL_{field.upper()}" for field in Settings.model_fields}
    assert set(replica["environment"]) <= names
    source, _, _ = balancer["volumes"][0].partition(":")
    assert (ROOT / source).resolve() == CONFIGURATION


@needs_haproxy
def test_no_request_fails_while_a_replica_is_killed(fleet: Fleet):
    data = encoded(thirds())
    ended = threading.Event()
    statuses: list[int | str] = []

    def send() -> None:
        with httpx2.Client(base_url=fleet.client.base_url, timeout=60) as client:
            while not ended.is_set():
                try:
                    statuses.append(post(client, data).status_code)
                except httpx2.TransportError as error:
                    statuses.append(repr(error))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    killed, other = fleet.replicas
    wait_for(lambda: min(map(segmentations, fleet.replicas)) > 10, "answers of both replicas")
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    before = segmentations(other)
    wait_for(lambda: segmentations(other) > before + 100, "answers of the other replica")
    ended.set()
    for thread in threads:
        thread.join()

    assert set(statuses) == {200}, [each for each in statuses if each != 200]


@needs_haproxy
def test_requests_go_on_while_a_replica_drains(fleet: Fleet):
    drained = fleet.replicas[0]
    drained.process.send_signal(signal.SIGTERM)
    statuses = []
    while drained.process.poll() is None:
        statuses.append(post(fleet.client, thirds()).status_code)
    statuses.append(post(fleet.client, thirds()).status_code)

    assert set(statuses) == {200}
    assert drained.process.returncode == 0


class Dying(BaseHTTPRequestHandler):
    """A replica that is ready, and closes the connection of every other request."""

    received: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Respond that the replica is ready."""
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        """Read a request and end, as a process does that is killed."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(self.path)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@needs_haproxy
@pytest.mark.parametrize(
    ("path", "attempts"),
    [
        ("/segment", 4),
        ("/segment?output=mask", 4),
        ("/v2/models/tiny/infer", 4),
        ("/huggingface/tiny", 4),
        ("/labelstudio/tiny/predict", 4),
        ("/models/reload", 1),
        ("/calibrate", 1),
        ("/calibrators/x/activate", 1),
        ("/labelstudio/webhook", 1),
    ],
)
def test_only_requests_that_change_nothing_are_sent_again(tmp_path: Path, path: str, attempts: int):
    Dying.received.clear()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Dying)) for _ in range(2)
        ]
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        url = stack.enter_context(balancing(tmp_path, [each.server_port for each in servers]))
        client = stack.enter_context(httpx2.Client(base_url=url, timeout=60))
        wait_for(lambda: answers(client), "the balancer to find the replicas")
        answer = client.post(path, content=bytes(100_000))

    assert answer.status_code == 502
    assert Dying.received == [path] * attempts


@needs_haproxy
def test_links_of_a_response_work_whichever_replica_answers(fleet: Fleet):
    link = post(fleet.client, thirds()).json()["links"]["mask"]
    for replica in fleet.replicas:
        assert replica.client.get(link).status_code == 200


@needs_haproxy
def test_balancer_rejects_bodies_above_the_limit_of_images_only(fleet: Fleet):
    large = bytes((33 << 20) + 1)
    headers = {"Content-Type": "image/png"}
    assert_problem(fleet.client.post("/segment", content=large, headers=headers), 413, "33 MiB")
    answer = fleet.client.post("/calibrate", content=large, headers=headers)
    assert answer.status_code in (401, 415)
