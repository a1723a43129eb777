"""The process exits in its time after a signal, whatever its threads do."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from app.settings import SHUTDOWN_RESERVE_S
from tests.api.test_calibrate import TOKEN
from tests.api.test_connections import answered
from tests.api.test_server import START_S, Served, serving
from tests.factories.models import write_endless_model, write_endless_torch_model
from tests.factories.service import (
    WHITE,
    WORKERS,
    assert_problem,
    assert_serves,
    post,
    wait_until_ready,
)
from tests.imaging.test_decode import progressive

REQUESTS_S = 2.0
EXIT_S = SHUTDOWN_RESERVE_S + REQUESTS_S


@pytest.fixture
def endless(folder: Path) -> Path:
    """Return the folder with networks that take days: one that can be stopped, one that can't."""
    write_endless_model(folder / "models", "endless")
    write_endless_torch_model(folder / "models", "unstoppable")
    return folder


def ready(server: Served) -> None:
    server.first_answer("/healthz")
    wait_until_ready(server.client)


def busy(server: Served, model: str) -> httpx2.Response:
    """Send a request that takes days."""
    with httpx2.Client(base_url=server.client.base_url, timeout=START_S) as client:
        return post(client, WHITE, model=model)


@pytest.mark.parametrize(("model", "code"), [("endless", 0), ("unstoppable", 1)])
def test_busy_server_exits_in_time(endless: Path, model, code):
    with (
        serving(
            endless,
            DEFAULT_MODEL="tiny",
            SHUTDOWN_TIMEOUT_S=str(EXIT_S),
            WORKERS=str(WORKERS),
        ) as server,
        ThreadPoolExecutor(2 * WORKERS) as pool,
    ):
        ready(server)
        asked = [pool.submit(busy, server, model) for _ in range(2 * WORKERS)]
        time.sleep(1)
        assert not any(future.done() for future in asked)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(START_S) == code
        for future in asked:
            assert_problem(future.result(), 503, "shutting down")


def test_second_interrupt_does_not_wait(endless: Path):
    with (
        serving(endless, DEFAULT_MODEL="tiny", SHUTDOWN_TIMEOUT_S="10000") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        ready(server)
        asked = pool.submit(busy, server, "unstoppable")
        time.sleep(1)
        server.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(START_S) == 1
        with suppress(httpx2.TransportError):
            asked.result()


def test_stalled_upload_is_answered_at_shutdown(folder: Path):
    with serving(folder, SHUTDOWN_TIMEOUT_S=str(EXIT_S)) as server:
        ready(server)
        with server.connection() as connection:
            head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            server.process.send_signal(signal.SIGTERM)
            assert connection.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert server.process.wait(START_S) == 0


def test_calibration_upload_and_unread_response_that_are_cut_off_give_code_1(folder: Path):
    with serving(folder, ADMIN_TOKEN=TOKEN, SHUTDOWN_TIMEOUT_S=str(EXIT_S)) as server:
        ready(server)
        with server.connection() as connection:
            head = f"POST /calibrate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            kind = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n"
            connection.sendall(f"{head}{kind}Expect: 100-continue\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(START_S) == 1
    with serving(folder, SHUTDOWN_TIMEOUT_S=str(EXIT_S)) as server:
        ready(server)
        with server.connection() as connection:
            assert answered(connection) == b"HTTP/1.1 200"  # and not read
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(START_S) == 1


def test_images_that_take_minutes_to_decode_are_rejected(folder: Path):
    bomb = progressive(extra_scans=10_000)
    with serving(folder) as server:
        ready(server)
        for _ in range(4):
            assert_problem(post(server.client, bomb), 413, "fewer scans")
        assert_serves(server.client)
