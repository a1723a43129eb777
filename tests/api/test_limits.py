"""Bytes, pixels and the queue are bounded; above a limit, requests are rejected at once."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest

from app.api.dependencies import Admission
from app.main import FORM_OVERHEAD
from tests.conftest import MakeClient, MakeServer
from tests.factories.jobs import wait_for
from tests.factories.models import write_endless_model
from tests.factories.service import (
    BLUE,
    GREEN,
    RED,
    THIRDS_MASK,
    WHITE,
    WORKERS,
    assert_problem,
    assert_serves,
    decoded,
    encoded,
    post,
    solid,
    thirds,
)

LIMIT = 1000


@contextmanager
def unfinished(url: str, length: int) -> Iterator[tuple[socket.socket, bytes]]:
    """Open an upload that sends no body; yields its socket and the server's first response.

    That is `100 Continue` once the request's body is awaited.
    """
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        head = (
            f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
            "Content-Type: image/png\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        yield connection, connection.recv(65536)


def padded(image: np.ndarray, size: int) -> bytes:
    """Encode an image as PNG, padded to `size` bytes; decoders ignore bytes after its end."""
    data = encoded(image)
    return data + bytes(size - len(data))


@pytest.mark.parametrize("way", ["raw", "multipart"])
def test_body_of_the_limit_is_served_and_one_byte_more_is_not(make_client: MakeClient, way):
    client = make_client(max_upload_bytes=LIMIT)

    def send(size: int) -> httpx2.Response:
        data = padded(thirds(), size)
        if way == "raw":
            return post(client, data)
        return client.post("/segment", files={"image": ("a.png", data)})

    assert send(LIMIT).status_code == 200
    assert_problem(send(LIMIT + 1), 413, str(LIMIT), str(LIMIT + 1))
    assert_serves(client)


def test_declared_length_above_the_limit_is_rejected_before_the_body(make_server: MakeServer):
    url = make_server(max_upload_bytes=LIMIT)
    with unfinished(url, 10**9) as (_, answer):
        pass

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    with httpx2.Client(base_url=url) as client:
        assert_serves(client)


@pytest.mark.parametrize("way", ["raw", "multipart"])
def test_stream_above_the_limit_is_rejected_while_received(make_server: MakeServer, way):
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        if way == "multipart":
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(32):
            sent += 1
            yield bytes(FORM_OVERHEAD // 8)

    kind = "image/png" if way == "raw" else "multipart/form-data; boundary=x"
    with httpx2.Client(base_url=make_server(max_upload_bytes=LIMIT)) as client:
        response = client.post("/segment", content=stream(), headers={"Content-Type": kind})

        assert response.request.headers["transfer-encoding"] == "chunked"
        assert_problem(response, 413, str(LIMIT + FORM_OVERHEAD))
        assert_serves(client)


def test_stream_within_the_limit_is_served(make_server: MakeServer):
    data = encoded(thirds())
    with httpx2.Client(base_url=make_server()) as client:
        response = client.post(
            "/segment",
            content=iter([data[:20], data[20:]]),
            headers={"Content-Type": "image/png", "Accept": "image/png"},
        )

    assert (np.asarray(decoded(response.content)) == THIRDS_MASK).all()


def test_pixels_of_the_limit_are_served_and_one_row_more_is_not(make_client: MakeClient):
    client = make_client(max_pixels=96)

    assert post(client, solid(RED, 8, 12)).status_code == 200
    assert_problem(post(client, solid(RED, 9, 12)), 413, "96", "12x9")


def is_rejected_before_the_body(url: str) -> bool:
    with unfinished(url, 1000) as (_, answer):
        return answer.startswith(b"HTTP/1.1 429 ")


def test_full_queue_is_rejected_at_once_and_recovers(make_server: MakeServer, models_dir: Path):
    write_endless_model(models_dir, "endless")
    url = make_server(queue_limit=1, workers=WORKERS, request_timeout_s=5, default_model="tiny")

    def hold(_: int) -> httpx2.Response:
        with httpx2.Client(base_url=url, timeout=60) as client:
            return post(client, WHITE, model="endless")

    with httpx2.Client(base_url=url, timeout=60) as client:
        with ThreadPoolExecutor(WORKERS + 2) as pool:
            held = pool.map(hold, range(WORKERS + 2))
            assert client.get("/healthz").status_code == 200
            wait_for(lambda: is_rejected_before_the_body(url), "a full queue")
        rejected, *ended = sorted(held, key=lambda response: response.status_code)
        assert_problem(rejected, 429, "full queue")
        # The work that takes too long is ended, and its threads serve others.
        for response in ended:
            assert_problem(response, 503, "within 5 s")
        assert_serves(client)


def test_clients_that_send_no_body_hold_no_place(make_server: MakeServer):
    url = make_server(queue_limit=1, workers=WORKERS)
    with httpx2.Client(base_url=url, timeout=60) as client, ExitStack() as stack:
        for _ in range(2 * (WORKERS + 1)):
            _, answer = stack.enter_context(unfinished(url, 1000))
            assert answer.startswith(b"HTTP/1.1 100 ")
        assert_serves(client)


def test_full_upload_buffer_is_rejected_and_recovers(make_server: MakeServer):
    url = make_server(upload_buffer_bytes=100_000)
    with httpx2.Client(base_url=url, timeout=60) as client:
        with unfinished(url, 90_000) as (connection, _):
            connection.sendall(bytes(89_000))
            large = padded(thirds(), 50_000)
            wait_for(lambda: post(client, large).status_code == 429, "a full buffer")
            assert_problem(post(client, large), 429, "uploads of at most 100000 bytes at once")
            assert_serves(client)
        wait_for(lambda: post(client, large).status_code == 200, "room in the buffer")


def test_body_in_small_chunks_is_rejected_and_others_are_served(make_server: MakeServer):
    parts = urlsplit(make_server())
    head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            connection.sendall(b"1\r\nx\r\n" * 500_000)
        with suppress(ConnectionResetError):
            assert connection.recv(12) == b"HTTP/1.1 400"
    with httpx2.Client(base_url=parts.geturl()) as client:
        assert_serves(client)


def test_small_body_in_one_byte_chunks_is_served(make_server: MakeServer):
    data = encoded(thirds())
    with httpx2.Client(base_url=make_server(), timeout=60) as client:
        chunks = (data[at : at + 1] for at in range(len(data)))
        response = client.post("/segment", content=chunks, headers={"Content-Type": "image/png"})

    assert response.status_code == 200


def test_disconnected_client_frees_its_slot(make_server: MakeServer):
    url = make_server(queue_limit=1, workers=WORKERS)
    with httpx2.Client(base_url=url) as client:
        for _ in range(3 * (WORKERS + 1)):
            with unfinished(url, 1000) as (connection, _):
                connection.sendall(b"half a pic")
        for _ in range(100):
            if post(client, thirds()).status_code == 200:
                break
        assert_serves(client)


def test_sixteen_concurrent_requests_get_their_own_results(make_server: MakeServer):
    url = make_server()
    colors = [RED, GREEN, BLUE]

    def ask(index: int) -> tuple[int, tuple[int, int], set[int]]:
        with httpx2.Client(base_url=url, timeout=60) as client:
            image = solid(colors[index % 3], 8 + 2 * index, 10)
            response = post(client, image, {"Accept": "image/png"})
            mask = decoded(response.content)
            return response.status_code, mask.size, set(np.unique(np.asarray(mask)).tolist())

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))

    assert answers == [(200, (10, 8 + 2 * i), {i % 3}) for i in range(16)]


def test_stop_iteration_is_an_error_and_frees_its_slot():
    async def twice():
        admission = Admission(workers=1, queue_limit=0, timeout_s=60)
        for _ in range(2):
            async with admission.enter():
                with pytest.raises(RuntimeError, match="got a stop of iteration"):
                    await asyncio.wait_for(admission.run(lambda _: next(iter([]))), timeout=5)
        assert not admission.active_requests.several

    asyncio.run(twice())
