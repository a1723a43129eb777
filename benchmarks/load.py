"""Closed-loop clients: each sends the next request when the last one is answered.

Threads with blocking sockets from the standard library, so that no client beside Python needs to be
there. A client is idle while its server works; what it costs is measured with every window.
"""

import http.client
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Request:
    """One prepared request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Window:
    """What the clients saw; `seconds` reach from the start to the last answer.

    `client_cores` is the share of a core that the clients themselves took.
    """

    seconds: float
    latencies: tuple[float, ...]
    errors: int
    client_cores: float

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds


def form_request(path: str, image: bytes) -> Request:
    """Put a JPEG into a form's field `image`."""
    boundary = "segcal-benchmark"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return Request(path, {"Content-Type": f"multipart/form-data; boundary={boundary}"}, body)


def raw_request(path: str, image: bytes) -> Request:
    """Send a JPEG as the body itself."""
    return Request(path, {"Content-Type": "image/jpeg"}, image)


def exchange(connection: http.client.HTTPConnection, request: Request) -> bytes:
    """Send a request and read the answer; raises RuntimeError for any status but 200."""
    connection.request("POST", request.path, request.body, request.headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"expected 200, got {answer.status}: {body[:300]!r}")
    return body


def ask_once(port: int, request: Request, timeout_s: float = TIMEOUT_S) -> bytes:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        return exchange(connection, request)
    finally:
        connection.close()


def run_window(port: int, request: Request, concurrency: int, seconds: float) -> Window:
    """Let `concurrency` clients send for `seconds`, then wait for the answers on their way."""
    latencies: list[float] = []
    errors: list[Exception] = []
    ready = threading.Barrier(concurrency + 1)
    started = ended = 0.0

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        ready.wait()
        while time.perf_counter() < started + seconds:
            sent = time.perf_counter()
            try:
                exchange(connection, request)
                latencies.append(time.perf_counter() - sent)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                errors.append(error)
                connection.close()
                time.sleep(0.05)  # a server that refuses at once must not be flooded
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    before = time.process_time()
    started = time.perf_counter()
    ready.wait()
    for thread in threads:
        thread.join()
    ended = time.perf_counter()
    spent = time.process_time() - before
    return Window(ended - started, tuple(latencies), len(errors), spent / (ended - started))


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that `share` of all values don't exceed; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def wait_until(answers: Callable[[], bool], timeout_s: float) -> float:
    """Ask until the answer is yes and give the seconds it took; raises TimeoutError."""
    started = time.perf_counter()
    while time.perf_counter() - started < timeout_s:
        try:
            if answers():
                return time.perf_counter() - started
        except (OSError, http.client.HTTPException, RuntimeError):
            pass
        time.sleep(0.05)
    raise TimeoutError(f"expected an answer within {timeout_s:.0f} s, got none")
