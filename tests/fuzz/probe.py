"""Send hostile requests to a server and judge the answers."""

import json
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse

import h11

from tests.fuzz.targets import Request

TIMEOUT_S = 60.0
FIRST_ERROR = 400
FIRST_FAULT = 500


@dataclass(frozen=True)
class Answer:
    """The answer to a request; status 0: none, which is wrong where `error` is not empty."""

    status: int
    media_type: str
    body: bytes
    seconds: float
    error: str = ""


@dataclass
class Findings:
    """What became of the inputs of one target; safe for threads."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest_seed: int = -1
    faults: dict[int, str] = field(default_factory=dict)  # by seed
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def inputs(self) -> int:
        """Count the inputs."""
        return sum(self.statuses.values())

    def record(self, seed: int, answer: Answer, fault: str | None) -> None:
        """Record one answer, and its fault if it has one."""
        with self.lock:
            self.statuses[answer.status] += 1
            if answer.seconds > self.slowest_s:
                self.slowest_s, self.slowest_seed = answer.seconds, seed
            if fault is not None:
                self.faults[seed] = fault


def is_incomplete(data: bytes) -> bool:
    """Return whether a server has to wait for more bytes to know a request, by HTTP/1.1."""
    if not data:  # which h11 takes for the end of the connection
        return True
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return False
    except h11.RemoteProtocolError:
        return False
    return True


def send(port: int, request: Request | bytes) -> Answer:
    """Send a request on a connection of its own and read the answer, for at most 60 s a read.

    After mutated bytes that are an incomplete request the sending side is closed.
    """
    data = request if isinstance(request, bytes) else request.encode()
    method = "GET" if isinstance(request, bytes) else request.method
    incomplete = isinstance(request, bytes) and is_incomplete(request)
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        with suppress(OSError):  # rejected before the end; the answer can be read all the same
            connection.sendall(data)
            if incomplete:
                connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection, method=method)
        try:
            response.begin()
            body = response.read(1 << 22)
        except TimeoutError:
            return Answer(0, "", b"", time.perf_counter() - started, "no answer and not closed")
        except (HTTPException, OSError):
            error = "" if incomplete else "closed without an answer"
            return Answer(0, "", b"", time.perf_counter() - started, error)
        kind = response.headers.get("content-type", "")
        return Answer(response.status, kind, body, time.perf_counter() - started)


def fault_of(request: Request | bytes, answer: Answer) -> str | None:
    """Return the reason for which an answer is wrong, None for a correct one."""
    expected = frozenset() if isinstance(request, bytes) else request.expected
    head = not isinstance(request, bytes) and request.method == "HEAD"
    if answer.status == 0:
        return answer.error or None
    if answer.status >= FIRST_FAULT and answer.status not in expected:
        return f"{answer.status} {answer.body[:300]!r}"
    if answer.status >= FIRST_ERROR and not head:
        if answer.media_type != "application/problem+json":
            return f"{answer.status} as {answer.media_type!r}"
        if json.loads(answer.body)["status"] != answer.status:
            return f"{answer.status} with the body {answer.body[:300]!r}"
    return None
