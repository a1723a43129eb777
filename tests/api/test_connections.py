"""Connections are limited in number and in the time that a client takes."""

import io
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import h11
import httpx2
import numpy as np
import pytest

from app.api.connections import CountingConnection
from tests.api.test_server import read_all
from tests.conftest import MakeServer
from tests.factories.jobs import wait_for
from tests.factories.service import assert_problem, assert_serves, encoded, post

TIMEOUT_S = 60.0
MEBI = 1 << 20


@contextmanager
def connection(url: str, data: bytes = b"") -> Iterator[socket.socket]:
    """Open a connection and send some bytes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S) as opened:
        opened.sendall(data)
        yield opened


def is_closed(opened: socket.socket) -> bool:
    """Return whether the server closes a connection within the timeout, without a response."""
    try:
        return opened.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: "])
def test_connection_without_a_request_is_closed(make_server: MakeServer, sent):
    url = make_server(upload_timeout_s=1)
    with connection(url, sent) as opened:
        assert is_closed(opened)


def test_bytes_of_headers_do_not_restart_their_timeout(make_server: MakeServer):
    url = make_server(upload_timeout_s=1)
    sent = 0
    with connection(url, b"GET /healthz HTTP/1.1\r\nA: ") as opened:
        opened.settimeout(0.1)
        while sent < 1000:
            try:
                opened.sendall(b"a")
                sent += 1
                if opened.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert 3 < sent < 1000


def test_idle_connection_is_closed_after_its_timeout(make_server: MakeServer):
    url = make_server(idle_timeout_s=1)
    with connection(url, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as opened:
        assert read_all(opened).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("limit", ["connection_limit", "client_connection_limit"])
def test_oldest_idle_connection_makes_room(make_server: MakeServer, limit):
    url = make_server(**{limit: 4})
    with ExitStack() as stack:
        opened = [stack.enter_context(connection(url)) for _ in range(8)]
        assert [is_closed(each) for each in opened[:4]] == [True] * 4
        with httpx2.Client(base_url=url, timeout=TIMEOUT_S) as client:
            assert_serves(client)


def test_above_the_limit_only_health_is_answered(make_server: MakeServer):
    url = make_server(connection_limit=4)
    head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with ExitStack() as stack:
        for _ in range(4):
            busy = stack.enter_context(
                connection(url, head + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
            )
            assert busy.recv(65536).startswith(b"HTTP/1.1 100")
        with httpx2.Client(base_url=url, timeout=TIMEOUT_S) as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 200
            assert_problem(client.get("/models"), 429, "fewer open connections")
    with httpx2.Client(base_url=url, timeout=TIMEOUT_S) as client:
        wait_for(lambda: client.get("/models").status_code == 200, "a free connection")


def answered(opened: socket.socket) -> bytes:
    """Send a request for arrays of 4 megapixels, whose response of 8 MB no socket can buffer."""
    image = encoded(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8))
    head = (
        "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Accept: application/x-npz\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    opened.sendall(head.encode() + image)
    return opened.recv(12)


def test_client_that_does_not_read_is_closed(make_server: MakeServer):
    url = make_server(download_timeout_s=1)
    with connection(url) as opened:
        assert answered(opened) == b"HTTP/1.1 200"
        with httpx2.Client(base_url=url, timeout=TIMEOUT_S) as client:
            # The server has closed the connection once it has no other than the client's.
            wait_for(lambda: open_connections(url) == 0, "the connection to be closed")
            assert_serves(client)
        received = 0
        with suppress(ConnectionResetError):
            while part := opened.recv(1 << 20):
                received += len(part)
        assert received < 8_000_000


def open_connections(url: str) -> int:
    """Count the connections to a port whose server's end is open and has bytes to send."""
    port = f":{urlsplit(url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = "01"
    return sum(
        row[1].endswith(port) and row[3] == established and row[4].split(":")[0] != "00000000"
        for row in rows
    )


def test_unread_responses_lie_on_disk(make_server: MakeServer):
    url = make_server()
    with ExitStack() as stack:
        for count in range(1, 4):
            opened = stack.enter_context(connection(url))
            assert answered(opened) == b"HTTP/1.1 200"
            assert len(deleted_files()) == count
    wait_for(lambda: not deleted_files(), "the files to be closed")


def deleted_files() -> list[int]:
    """List the sizes of this process's open files of several MB that have no name."""
    sizes = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                sizes.append(status.st_size)
    return [size for size in sizes if size > MEBI]


def test_large_response_is_complete(make_server: MakeServer):
    url = make_server(download_timeout_s=5)
    image = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    with httpx2.Client(base_url=url, timeout=TIMEOUT_S) as client:
        response = post(client, image, {"Accept": "application/x-npz"})
        assert response.status_code == 200
        assert len(response.content) == int(response.headers["content-length"]) > MEBI
        arrays = np.load(io.BytesIO(response.content))
        assert arrays["mask"].shape == arrays["confidence"].shape == (1000, 1000)
        assert client.get("/healthz").status_code == 200  # on the same connection


@pytest.mark.parametrize(("method", "body"), [("GET", b"ab"), ("HEAD", b"")])
def test_headers_are_written_with_the_beginning_of_the_body(method, body):
    connection = CountingConnection(h11.SERVER)
    connection.receive_data(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    connection.next_event()
    headers = h11.Response(status_code=200, headers=[("Content-Length", "2")], reason=b"OK")

    assert connection.send(headers) == b""
    written = connection.send(h11.Data(data=body))
    assert written == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body
    assert connection.send(h11.EndOfMessage()) == b""
