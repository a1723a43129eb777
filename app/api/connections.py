"""HTTP/1.1 connections with limits on their number, and on the time that a client takes."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.api.problem_details import problem

HEALTH_PATHS = ("/healthz", "/readyz")
# A chunk of a body takes 5 us of the event loop, whatever its size: one-byte chunks would take
# seconds for 3 MB. So many chunks are free, and the others must have this size on average.
FREE_CHUNKS, MIN_CHUNK_BYTES = 16384, 128
READ_BYTES = 32 << 10  # at a time from one connection; 5000 chunks of one byte, or 30 ms


@dataclass(frozen=True)
class ConnectionLimits:
    """Numbers of open connections, in total and of one client address; timeouts in seconds.

    `headers_s` is the time in which the headers of a request must arrive, `write_s` that in which
    the client must read 256 KiB.
    """

    total: int
    per_client: int
    headers_s: float
    write_s: float


class LimitedServerState(ServerState):
    """The open connections of a server, within limits."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits

    def make_room(self, new: "LimitedProtocol") -> bool:
        """Close the connection that is idle for longest where there are too many.

        Returns False where none of them is idle.
        """
        opened = [cast(LimitedProtocol, c) for c in self.connections if c is not new]
        opened = [c for c in opened if not c.transport.is_closing()]
        own = [c for c in opened if c.address == new.address]
        return _keep_below(self.limits.per_client, own) and _keep_below(self.limits.total, opened)


def _keep_below(limit: int, connections: Iterable["LimitedProtocol"]) -> bool:
    """Abort the oldest idle connection where the limit is reached; return whether it was kept."""
    opened = [c for c in connections if not c.transport.is_closing()]
    if len(opened) < limit:
        return True
    idle = [c for c in opened if c.is_idle]
    if idle:
        min(idle, key=lambda c: c.idle_since).transport.abort()
    return bool(idle)


class CountingConnection(h11.Connection):
    """The state of an HTTP/1.1 connection; rejects bodies in many small chunks.

    The headers of a response are written with the beginning of its body. A process that is killed
    between two writes leaves headers without a body, after which a proxy can't send the request to
    another replica.
    """

    chunks = received = 0
    headers = b""  # of the response, not written yet

    def next_event(self) -> Any:  # noqa: ANN401 - as the base class
        """Return the next event; raises RemoteProtocolError for too many small chunks."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.chunks = self.received = 0
        if isinstance(event, h11.Data) and event.chunk_start:
            self.chunks += 1
        if isinstance(event, h11.Data):
            self.received += len(event.data)
        if self.chunks > FREE_CHUNKS + self.received // MIN_CHUNK_BYTES:
            raise h11.RemoteProtocolError("too many small chunks")
        return event

    def send(self, event: Any) -> Any:  # noqa: ANN401 - as the base class
        """Encode an event; the headers of a response are returned with the event after them."""
        data = super().send(event)
        if isinstance(event, h11.Response):
            self.headers, data = data, b""
        elif data is not None:
            self.headers, data = b"", self.headers + data
        return data


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with limits on connections and on the client's time.

    uvicorn's own options close a connection that is idle after a response, but none that never
    sends a request or never reads a response; and its `limit_concurrency` rejects /healthz too.
    """

    server_state: LimitedServerState

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class
        super().__init__(*args, **kwargs)
        self.conn = CountingConnection(h11.SERVER)
        self.idle_since = self.loop.time()
        self._headers_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """The client's address without its port."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """True where no request is complete up to its body, and no response is being sent."""
        waiting = self.cycle is None or self.cycle.response_complete
        return waiting and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; above the limits it is only asked for the service's health."""
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # of asyncio's transports
        super().connection_made(transport)
        if not self.server_state.make_room(self):
            self.app = HealthOnly(self.app)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        super().connection_lost(exc)
        self._stop_timers(headers=True, write=True)

    def data_received(self, data: bytes) -> None:
        """Process received bytes."""
        super().data_received(data)
        self._time_headers()

    def pause_writing(self) -> None:
        """Close the connection unless the client reads what was written in time."""
        super().pause_writing()
        self._time_writing()

    def resume_writing(self) -> None:
        """Continue, as the client has read what was written."""
        super().resume_writing()
        self._stop_timers(write=True)

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the client to read the end of the response."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._time_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which the client is too slow."""
        if self.transport.get_write_buffer_size():  # closing would wait until it is read
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _time_headers(self) -> None:
        """Start or stop the timer of a request's headers."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timers(headers=True)
        elif self._headers_timer is None:
            limit = self.server_state.limits.headers_s
            self._headers_timer = self.loop.call_later(limit, self.timeout_keep_alive_handler)

    def _time_writing(self) -> None:
        if self._write_timer is None:
            limit = self.server_state.limits.write_s
            self._write_timer = self.loop.call_later(limit, self._abort_unread)

    def _abort_unread(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _stop_timers(self, *, headers: bool = False, write: bool = False) -> None:
        if headers and self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
        if write and self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """Respond with 400 and close the connection."""
        answer = problem(400, f"expected an HTTP/1.1 request, got one that breaks off: {msg}")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(
                    status_code=answer.status_code, headers=headers, reason=b"Bad Request"
                ),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class HealthOnly:
    """Passes on requests for the service's health, and answers others with 429."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route one request."""
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send)
            return
        answer = problem(
            429, "expected fewer open connections, got as many as the service or a client may have",
            headers={"Connection": "close"},
        )  # fmt: skip
        await answer(scope, receive, send)
