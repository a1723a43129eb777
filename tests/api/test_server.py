"""`segcal serve` as a separate process: start, requests, shutdown, kill and restart."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest

from app.storage.artifacts import ArtifactStore
from tests.factories.jobs import wait_for
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    THIRDS_MASK,
    assert_problem,
    assert_serves,
    decoded,
    encoded,
    post,
    publish_temperature,
    thirds,
    wait_until_ready,
)

SEGCAL = Path(sys.executable).with_name("segcal")
START_S = 240  # enough on a loaded machine


def environment(folder: Path, **settings: str) -> dict[str, str]:
    chosen = {
        "MODELS_DIR": str(folder / "models"),
        "ARTIFACTS_DIR": str(folder / "artifacts"),
        "THREADS": "1",
        **settings,
    }
    return {**os.environ, **{f"SEGCAL_{name}": value for name, value in chosen.items()}}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Served:
    """A server process and a client to it."""

    def __init__(self, folder: Path, port: int | None = None, **settings: str) -> None:
        self.port = port or free_port()
        self.log = folder / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [SEGCAL, "serve", "--port", str(self.port)],
                env=environment(folder, **settings),
                stdout=log,
                stderr=log,
            )
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=START_S)

    def first_answer(self, path: str) -> httpx2.Response:
        """Send a request until the port accepts it; return the response."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self.client.get(path)
            except httpx2.ConnectError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.02)

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=START_S)

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def serving(folder: Path, port: int | None = None, **settings: str) -> Iterator[Served]:
    served = Served(folder, port, **settings)
    try:
        yield served
    finally:
        served.end()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    publish_temperature(root / "artifacts", write_onnx_model(root / "models", "tiny"), 2)
    return root


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """Start one server for the tests that do not stop it."""
    with serving(folder) as started:
        started.first_answer("/healthz")
        wait_until_ready(started.client)
        yield started


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_server_is_alive_then_ready_and_stops_after_requests(folder: Path):
    with serving(folder) as server:
        assert server.first_answer("/healthz").json() == {"status": "alive"}
        ready = server.client.get("/readyz")
        if ready.status_code != 200:
            assert_problem(ready, 503, "loading")
        wait_until_ready(server.client)
        assert_serves(server.client)

        # A request that is running at the signal is finished before the exit.
        data = encoded(thirds())
        with server.connection() as connection:
            head = (
                f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
                "Content-Type: image/png\r\nAccept: image/png\r\nExpect: 100-continue\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert server.process.poll() is None
            assert_problem(server.client.get("/readyz"), 503, "shutting down")
            assert_problem(post(server.client, data), 503, "shutting down")
            connection.sendall(data)
            answer = read_all(connection)

        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert (np.asarray(decoded(answer.partition(b"\r\n\r\n")[2])) == THIRDS_MASK).all()
        assert server.process.wait(START_S) == 0
        with pytest.raises(httpx2.ConnectError):
            server.client.get("/healthz")
    assert "Traceback" not in server.log.read_text()


def test_raw_and_multipart_bodies_are_served(served: Served):
    data = encoded(thirds())
    raw = post(served.client, data)
    form = served.client.post("/segment", files={"image": ("street.png", data, "image/png")})

    assert raw.status_code == form.status_code == 200
    assert raw.json()["classes"] == form.json()["classes"]
    assert served.client.get(raw.json()["links"]["overlay"]).status_code == 200
    assert "server" not in raw.headers


def test_curl_gets_the_requested_image(served: Served, tmp_path: Path):
    (tmp_path / "street.png").write_bytes(encoded(thirds()))
    # With curl's own headers, `Accept: */*` and `Expect: 100-continue`.
    with httpx2.Client(headers={"Accept": "*/*", "User-Agent": "curl/8"}) as curl:
        url = f"http://127.0.0.1:{served.port}/segment"
        files = {"image": ("street.png", (tmp_path / "street.png").read_bytes())}
        mask = curl.post(f"{url}?output=mask", files=files)
        described = curl.post(url, files=files)

    assert (np.asarray(decoded(mask.content)) == THIRDS_MASK).all()
    assert [entry["pixels"] for entry in described.json()["classes"]] == [32, 32, 32]


@pytest.mark.parametrize(
    "request_",
    [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\xfc\x03"],
    ids=["no request", "bad header", "TLS"],
)
def test_malformed_http_gets_a_problem(served: Served, request_: bytes):
    with served.connection() as connection:
        connection.sendall(request_ + b"\r\n\r\n")
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["status"] == 400
    assert_serves(served.client)


def test_connection_reset_by_client_does_not_affect_others(served: Served):
    data = encoded(np.zeros((600, 800, 3), np.uint8))
    for cut in (len(data) // 2, len(data)):  # during the body, and before the response
        for _ in range(3):
            with served.connection() as connection:
                # Closing with this set sends a reset, so that the server's next write fails.
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                head = (
                    "POST /segment?output=overlay HTTP/1.1\r\nHost: x\r\n"
                    f"Content-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"
                )
                connection.sendall(head.encode() + data[:cut])
    assert_serves(served.client)

    assert served.process.poll() is None
    assert "Traceback" not in served.log.read_text()


def test_body_far_above_the_limit_gets_a_response(served: Served):
    response = post(served.client, bytes(40 << 20))

    assert_problem(response, 413)
    assert_serves(served.client)


def test_sixteen_concurrent_requests_are_served(served: Served):
    def ask(_: int) -> bool:
        with httpx2.Client(base_url=served.client.base_url, timeout=START_S) as client:
            assert_serves(client)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(16)))


def test_activation_by_another_process_takes_effect(served: Served, folder: Path):
    store = ArtifactStore(folder / "artifacts")
    first = store.active_id("tiny")
    assert first
    second = publish_temperature(folder / "artifacts", folder / "models" / "tiny", 4)

    assert post(served.client, thirds()).headers["x-calibrator"] == second
    store.activate("tiny", first, "rolled back", by="a test")
    assert post(served.client, thirds()).headers["x-calibrator"] == first


def test_server_starts_again_after_kill_during_requests(folder: Path):
    image = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
    data = encoded(image, "BMP")
    with serving(folder) as server:
        server.first_answer("/healthz")
        wait_until_ready(server.client)

        statuses: set[int] = set()

        def ask_until_killed(_: int) -> None:
            with (
                httpx2.Client(base_url=server.client.base_url, timeout=START_S) as client,
                suppress(httpx2.TransportError),
            ):
                while True:
                    statuses.add(post(client, data).status_code)

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask_until_killed, index) for index in range(8)]
            wait_for(lambda: bool(statuses), "the first answer")
            server.process.kill()
            for future in asked:
                future.result()
        assert server.process.wait() == -signal.SIGKILL
        assert statuses == {200}
    with serving(folder, server.port) as again:
        again.first_answer("/healthz")
        wait_until_ready(again.client)
        assert_serves(again.client)
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(START_S) == 0


def test_invalid_setting_stops_the_start_and_is_named(folder: Path):
    done = subprocess.run(
        [SEGCAL, "serve", "--port", "0"],
        env=environment(folder, QUEUE_LIMIT="many"),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )

    assert done.returncode == 2
    assert re.fullmatch(r"error: SEGCAL_QUEUE_LIMIT: .*, got 'many'\n", done.stderr), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_occupied_port_stops_the_start(served: Served, folder: Path):
    with serving(folder, served.port) as second:
        assert second.process.wait(START_S) > 0
        assert "address already in use" in second.log.read_text()
    assert_serves(served.client)


def test_error_response_reaches_a_client_that_is_sending(make_server):
    url = make_server(admin_token="a token for tests")
    host, _, port = url.removeprefix("http://").partition(":")
    body = b"x" * (2 << 20)
    head = "POST /calibrate HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for start in range(0, len(body), 1 << 18):
                connection.sendall(body[start : start + (1 << 18)])
                time.sleep(0.01)
            assert connection.recv(32).startswith(b"HTTP/1.1 401 ")
