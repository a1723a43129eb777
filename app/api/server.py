"""uvicorn server that drains on the first signal, and exits within a stated time."""

import ctypes
import importlib
import logging
import os
import signal
import socket
import threading
import time
from types import FrameType, ModuleType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from app.api.connections import ConnectionLimits, LimitedProtocol, LimitedServerState
from app.api.dependencies import State
from app.errors import SettingsError
from app.settings import SHUTDOWN_RESERVE_S, Settings

log = logging.getLogger(__name__)

END_S = 1.0  # for the work that was ended to be answered
CLOSE_S = 2  # for connections to be closed after that; the rest of the reserve is for a fit
M_ARENA_MAX = -8  # of <malloc.h>
STOPPING = "expected a running service, got one that is shutting down"


class StoppableServer(Protocol):
    """A gRPC server that runs."""

    async def stop(self, grace: float | None) -> None:
        """Reject new calls, and end the running ones after `grace` seconds."""


class DrainingServer(uvicorn.Server):
    """Drains on the first signal: /readyz responds 503, and requests finish before the exit.

    `lost` is true where a request was cut off, as its work could not be stopped in time.
    """

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.lost = False
        self.server_state = LimitedServerState(connection_limits(state.settings))
        self._state = state
        self._timeout_s = state.settings.shutdown_timeout_s
        self._grpc: StoppableServer | None = None
        self._stopped_at = 0.0  # by the monotonic clock; the time of the first signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then shut down; a second interrupt does not wait.

        Unlike uvicorn's, it does not raise the signal again afterwards, so that the process exits
        with 0.
        """
        del frame
        self._state.readiness.draining.set()
        self.force_exit = bool(self._stopped_at) and sig == signal.SIGINT
        if not self._stopped_at:
            self._stopped_at = time.monotonic()
            # A thread that runs a network can't be stopped, and Python waits for its threads.
            watchdog = threading.Timer(self._timeout_s, self._exit_now)
            watchdog.daemon = True
            watchdog.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, for gRPC too where its port is set."""
        await super().startup(sockets)
        port = self._state.settings.grpc_port
        if port is not None and not self.should_exit:
            self._grpc = await grpc_module().start_grpc(self._state, self.config.host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and let calls of gRPC finish for a moment."""
        if self._grpc is not None:
            await self._grpc.stop(END_S)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Keep listening while requests finish, so that /readyz can respond 503."""
        if self._stopped_at:
            self._drain(time.monotonic() - self._stopped_at)
        return await super().on_tick(counter)

    def _drain(self, elapsed_s: float) -> None:
        """End the work of requests when their time is over, and shut down when none is left."""
        requests_s = self._timeout_s - SHUTDOWN_RESERVE_S
        if elapsed_s > requests_s:
            self._state.admission.expire(STOPPING)
            self._state.uploads.expire(STOPPING)
        over = self.force_exit or elapsed_s > requests_s + END_S
        self.lost = over and bool(self.server_state.tasks)
        self.should_exit = self.force_exit or self.lost or not self.server_state.tasks

    def _exit_now(self) -> None:
        log.error("expected an exit within %g s, got threads that still run", self._timeout_s)
        exit_at_once(self.lost)


def exit_at_once(lost: bool) -> None:
    """End the process without waiting for its threads."""
    logging.shutdown()
    os._exit(1 if lost else 0)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits of connections that the settings state."""
    return ConnectionLimits(
        total=settings.connection_limit,
        per_client=settings.client_connection_limit,
        headers_s=settings.upload_timeout_s,
        write_s=settings.download_timeout_s,
    )


def grpc_module() -> ModuleType:
    """Import the gRPC server; raises SettingsError without the packages of the extra."""
    try:
        return importlib.import_module("app.api.open_inference.grpc_server")
    except ImportError as error:
        raise SettingsError(
            "SEGCAL_GRPC_PORT: expected the packages of the extra grpc "
            f"(pip install 'segcal[grpc]'), got: {error}"
        ) from error


def build_server(
    app: FastAPI, host: str, port: int, log_level: str | None = None
) -> DrainingServer:
    """Build the server of an application; raises SettingsError for gRPC without its packages."""
    state: State = app.state.segcal
    if state.settings.grpc_port is not None:
        grpc_module()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="asyncio",  # the limits of connections read its transports; uvloop has others
        http=LimitedProtocol,
        ws="none",
        log_level=log_level,
        log_config=None,
        access_log=False,  # RequestLogMiddleware logs each response
        timeout_graceful_shutdown=CLOSE_S,
        timeout_keep_alive=state.settings.idle_timeout_s,  # type: ignore[arg-type]  # any number
        server_header=False,
    )
    return DrainingServer(config, state)


def limit_malloc_arenas() -> None:
    """Limit malloc to two arenas, where the C library has `mallopt`.

    With an arena for each thread, memory grows over thousands of requests of mixed sizes: a thread
    can't use the free memory of another arena.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def reload_on_hangup(state: State) -> None:
    """Load new and changed models in a thread, on each SIGHUP, where the system has it."""

    def load() -> None:
        try:
            report = state.load_models(state)
            log.info("loaded models: %s", report)
        except Exception:
            log.exception("loading models failed; the earlier ones are served")

    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=load, daemon=True).start())


def serve(app: FastAPI, host: str, port: int, sockets: list[socket.socket] | None = None) -> None:
    """Serve an application until a signal; ends the process where work could not be stopped.

    `sockets` are shared with other processes, and listen already.
    """
    limit_malloc_arenas()
    reload_on_hangup(app.state.segcal)
    server = build_server(app, host, port)
    if sockets is not None:
        # Connections accepted at a time: the other processes take the next ones.
        server.config.backlog = 1
    server.run(sockets)
    if server.lost or server.force_exit:
        exit_at_once(server.lost)
