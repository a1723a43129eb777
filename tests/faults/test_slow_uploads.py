"""Uploads below a minimum rate time out; error responses reach clients that are sending."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from app.api.middleware import STRIDE
from app.client import Client
from app.errors import SegcalError
from tests.api.test_calibrate import ADMIN, TOKEN, jobs_folder
from tests.api.test_limits import unfinished
from tests.conftest import MakeServer
from tests.factories.jobs import wait_for
from tests.factories.service import WORKERS, assert_problem, assert_serves, encoded, thirds

PATIENCE_S = 1.0


def read_answer(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_stalled_uploads_time_out_and_free_their_slots(make_server: MakeServer):
    url = make_server(queue_limit=1, workers=WORKERS, upload_timeout_s=PATIENCE_S)
    with httpx2.Client(base_url=url, timeout=60) as client, ExitStack() as stack:
        held = [stack.enter_context(unfinished(url, 1000)) for _ in range(WORKERS + 1)]
        for connection, _ in held:
            answer = read_answer(connection)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in answer.lower()
            assert b"application/problem+json" in answer
            assert b"within 1 s, got 0 bytes" in answer
        assert_serves(client)


def test_upload_slower_than_minimum_rate_times_out(make_server: MakeServer):
    url = make_server(upload_timeout_s=PATIENCE_S)
    data = encoded(thirds())
    sent = 0
    with httpx2.Client(base_url=url, timeout=60) as client:
        with unfinished(url, 10**6) as (connection, _):
            connection.settimeout(0.1)
            answer = b""
            while not answer:
                connection.sendall(data[:1])
                sent += 1
                try:
                    answer = connection.recv(65536)
                except TimeoutError:
                    assert sent < 1000
        assert_serves(client)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert sent > 3  # the bytes received did not restart the timeout


def test_slow_upload_above_minimum_rate_is_served(make_server: MakeServer):
    url = make_server(upload_timeout_s=PATIENCE_S)
    data = encoded(thirds())
    padding = bytes(STRIDE)  # what follows a PNG's end is ignored

    def slowly() -> Iterator[bytes]:
        yield data
        for _ in range(4):
            time.sleep(0.5 * PATIENCE_S)
            yield padding

    with httpx2.Client(base_url=url, timeout=60) as client:
        answer = client.post("/segment", content=slowly(), headers={"Content-Type": "image/png"})

    assert answer.status_code == 200, answer.text


def test_stalled_calibration_upload_is_removed(make_server: MakeServer, artifacts_dir: Path):
    url = make_server(upload_timeout_s=PATIENCE_S, admin_token=TOKEN)
    never = threading.Event()

    def stalled_body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="logits"; filename="l"\r\n\r\nabc'
        never.wait(10 * PATIENCE_S)

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with httpx2.Client(base_url=url, timeout=60) as client:
        answer = client.post("/calibrate", content=stalled_body(), headers=ADMIN | kind)

    assert_problem(answer, 408, f"expected the next {STRIDE} bytes")
    wait_for(lambda: jobs_folder(artifacts_dir) == [], "the folder to be removed")


@pytest.mark.parametrize(
    ("token", "settings", "sentence"),
    [
        ("wrong", {}, "expected a bearer token of this service, got another one"),
        (TOKEN, {"max_calibration_bytes": 1000}, "expected a body of at most"),
    ],
)
def test_client_reads_error_response_to_large_upload(
    make_server: MakeServer, tmp_path: Path, token, settings, sentence
):
    url = make_server(admin_token=TOKEN, **settings)
    large = tmp_path / "large.npz"
    with large.open("wb") as file:
        file.truncate(64 << 20)  # far more than the server reads before it closes

    for _ in range(3):
        with Client(url, token) as client, pytest.raises(SegcalError, match=sentence):
            client.calibrate({"logits": large})
