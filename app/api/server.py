"""uvicorn, as we run it: it drains on the first signal, and malformed HTTP is a problem as well."""

import ctypes
import signal
import time
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.dependencies import State
from app.api.problem_details import problem

SHUTDOWN_S = 30  # for requests to finish
# Longer than the 60 s of most proxies: whoever closes an idle connection first must be the one that
# sends, or a request now and then meets a connection that is just being closed.
KEEP_ALIVE_S = 75
CLOSE_S = 5  # for connections to be closed after that
M_ARENA_MAX = -8  # of <malloc.h>


class DrainingServer(uvicorn.Server):
    """Turns /readyz to 503 with the first signal, and ends well once requests are finished."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state
        self._deadline = 0.0  # by the monotonic clock; set by the first signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then shut down; a second interrupt does not wait.

        Unlike uvicorn's own, it does not raise the signal again afterwards: a stop that was asked
        for is no failure, so the process exits with 0.
        """
        del frame
        self._state.readiness.draining.set()
        self.force_exit = self._stopping and sig == signal.SIGINT
        self._deadline = self._deadline or time.monotonic() + SHUTDOWN_S

    @property
    def _stopping(self) -> bool:
        return bool(self._deadline)

    async def on_tick(self, counter: int) -> bool:
        """Go on listening while requests finish, so that whoever asks is told 503."""
        if self._stopping and (
            self.force_exit or not self.server_state.tasks or time.monotonic() > self._deadline
        ):
            self.should_exit = True
        return await super().on_tick(counter)


class ProblemProtocol(H11Protocol):
    """HTTP/1.1 whose answer to what is no HTTP has the form of all our other answers."""

    def send_400_response(self, msg: str) -> None:
        """Answer 400 and close."""
        answer = problem(400, f"expected an HTTP/1.1 request, got one that breaks off: {msg}")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def few_heaps() -> None:
    """Let all threads share two of the C library's heaps, where it is one that can be told.

    With a heap for each thread, memory goes on growing for thousands of requests of mixed sizes:
    what one heap has free is of no use to a thread of another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal."""
    few_heaps()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=ProblemProtocol,
        timeout_graceful_shutdown=CLOSE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
    DrainingServer(config, app.state.segcal).run()
