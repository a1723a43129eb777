"""uvicorn server that drains on the first signal, and reports malformed HTTP as a problem."""

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
# Longer than the 60 s of most proxies: if the server closed an idle connection first, the proxy
# could send a request to a connection that is being closed.
KEEP_ALIVE_S = 75
CLOSE_S = 5  # for connections to be closed after that
M_ARENA_MAX = -8  # of <malloc.h>


class DrainingServer(uvicorn.Server):
    """Drains on the first signal: /readyz responds 503, and requests finish before the exit."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state
        self._deadline = 0.0  # by the monotonic clock; set by the first signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then shut down; a second interrupt does not wait.

        Unlike uvicorn's, it does not raise the signal again afterwards, so that the process exits
        with 0.
        """
        del frame
        self._state.readiness.draining.set()
        self.force_exit = self._stopping and sig == signal.SIGINT
        self._deadline = self._deadline or time.monotonic() + SHUTDOWN_S

    @property
    def _stopping(self) -> bool:
        return bool(self._deadline)

    async def on_tick(self, counter: int) -> bool:
        """Keep listening while requests finish, so that /readyz can respond 503."""
        if self._stopping and (
            self.force_exit or not self.server_state.tasks or time.monotonic() > self._deadline
        ):
            self.should_exit = True
        return await super().on_tick(counter)


class ProblemProtocol(H11Protocol):
    """HTTP/1.1 that responds to malformed requests with problem details."""

    def send_400_response(self, msg: str) -> None:
        """Respond with 400 and close the connection."""
        answer = problem(400, f"expected an HTTP/1.1 request, got one that breaks off: {msg}")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def limit_malloc_arenas() -> None:
    """Limit malloc to two arenas, where the C library has `mallopt`.

    With an arena for each thread, memory grows over thousands of requests of mixed sizes: a thread
    can't use the free memory of another arena.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve an application until a signal."""
    limit_malloc_arenas()
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
