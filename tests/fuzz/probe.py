"""Send hostile requests to a server and judge the answers."""

import json
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse

from tests.fuzz.targets import Request

TIMEOUT_S = 60.0
INCOMPLETE_S = 0.2  # for mutated bytes, of which the server may wait for the rest
FIRST_ERROR = 400
FIRST_FAULT = 500


@dataclass(frozen=True)
class Answer:
    """The answer to a request; status 0: the connection was closed without one."""

    status: int
    media_type: str
    body: bytes
    seconds: float


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


def send(port: int, request: Request | bytes, wait_s: float | None = None) -> Answer:
    """Send a request on a connection of its own and read the answer.

    `wait_s` is the time for each read, by default 60 s, and 0.2 s for mutated bytes.
    """
    data = request if isinstance(request, bytes) else request.encode()
    method = "GET" if isinstance(request, bytes) else request.method
    started = time.perf_counter()
    wait_s = wait_s or (INCOMPLETE_S if isinstance(request, bytes) else TIMEOUT_S)
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        with suppress(OSError):  # rejected before the end; the answer can be read all the same
            connection.sendall(data)
        response = HTTPResponse(connection, method=method)
        try:
            response.begin()
            body = response.read(1 << 22)
        except (HTTPException, OSError):
            return Answer(0, "", b"", time.perf_counter() - started)
        kind = response.headers.get("content-type", "")
        return Answer(response.status, kind, body, time.perf_counter() - started)


def fault_of(request: Request | bytes, answer: Answer) -> str | None:
    """Return the reason for which an answer is wrong, None for a correct one."""
    expected = frozenset() if isinstance(request, bytes) else request.expected
    head = not isinstance(request, bytes) and request.method == "HEAD"
    if answer.status == 0:
        return None if isinstance(request, bytes) else "no answer"
    if answer.status >= FIRST_FAULT and answer.status not in expected:
        return f"{answer.status} {answer.body[:300]!r}"
    if answer.status >= FIRST_ERROR and not head:
        if answer.media_type != "application/problem+json":
            return f"{answer.status} as {answer.media_type!r}"
        if json.loads(answer.body)["status"] != answer.status:
            return f"{answer.status} with the body {answer.body[:300]!r}"
    return None
