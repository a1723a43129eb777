"""What HAProxy does with a 503, with a response that breaks off, and with a large body."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from tests.deploy.test_haproxy import answers, balancing, needs_haproxy
from tests.factories.jobs import wait_for

pytestmark = needs_haproxy
BUFFER = 1 << 20


class Replica(BaseHTTPRequestHandler):
    """A replica that is ready and responds to each POST with `status`, or not at all for 0."""

    status = 200
    length = 2
    received: list[str]

    def do_GET(self) -> None:
        """Respond that the replica is ready."""
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        """Read the request, and respond with two bytes of a body of `length`."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(self.path)
        self.close_connection = True
        if self.status:
            self.send_response(self.status)
            self.send_header("Content-Length", str(self.length))
            self.end_headers()
            self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        """Log nothing."""


def replica(status: int = 200, length: int = 2) -> type[Replica]:
    """Make a replica that records the paths of its requests."""
    return type("Own", (Replica,), {"status": status, "length": length, "received": []})


@contextmanager
def balanced(folder: Path, *replicas: type[Replica]) -> Iterator[httpx2.Client]:
    """Run replicas behind HAProxy; yield a client of it."""
    with ExitStack() as stack:
        ports = []
        for each in replicas:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), each))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            ports.append(server.server_port)
        url = stack.enter_context(balancing(folder, ports))
        client = stack.enter_context(httpx2.Client(base_url=url, timeout=60))
        wait_for(lambda: answers(client), "the balancer to find the replicas")
        yield client


def test_503_is_sent_to_another_replica_only_where_it_changes_nothing(tmp_path: Path):
    draining, other = replica(503), replica()
    with balanced(tmp_path, draining, other) as client:
        segmented = {client.post("/segment", content=b"a").status_code for _ in range(8)}
        changed = {client.post("/calibrate", content=b"a").status_code for _ in range(8)}

    assert segmented == {200}
    assert changed == {200, 503}
    assert {"/segment", "/calibrate"} == set(draining.received)


def test_503_of_all_replicas_is_passed_on(tmp_path: Path):
    only = replica(503)
    with balanced(tmp_path, only) as client:
        assert client.post("/segment", content=b"a").status_code == 503
    assert only.received == ["/segment"] * 4


def test_response_that_breaks_off_is_incomplete(tmp_path: Path):
    breaking, other = replica(length=100), replica(length=100)
    with (
        balanced(tmp_path, breaking, other) as client,
        pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"),
    ):
        client.post("/segment", content=b"a")
    assert len(breaking.received) + len(other.received) == 1


@pytest.mark.parametrize(("size", "attempts"), [(BUFFER // 2, 4), (2 * BUFFER, 1)])
def test_only_a_body_that_fits_the_buffer_is_sent_again(tmp_path: Path, size, attempts):
    ending = replica(0)
    with balanced(tmp_path, ending) as client:
        assert client.post("/segment", content=bytes(size)).status_code == 502
    assert ending.received == ["/segment"] * attempts
