"""`segcal serve --processes`: open the port, and keep several server processes running on it.

This process serves no request and loads no model. uvicorn's own supervisor builds its server class
itself, which neither drains nor limits connections, and restarts all processes on SIGHUP.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from prometheus_client.multiprocess import mark_process_dead

from app.errors import SettingsError
from app.process_group import ProcessGroup
from app.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections that wait to be accepted, as uvicorn's own
POLL_S = 0.2
RESTART_S = 1.0  # at least, between two starts of a process
SETTINGS_ERROR = 2  # exit status of a process that another start would not help
FORM_BYTES = 64 << 10  # of an upload besides its file
# The form of the lines of the processes; no message of this one has quotes.
LOG_FORMATS = {
    "text": "%(levelname)s %(name)s: %(message)s",
    "json": '{"level": "%(levelname)s", "logger": "%(name)s", "message": "%(message)s"}',
}
# Settings of the service of which each process gets its part.
DIVIDED = (
    "queue_limit", "connection_limit", "client_connection_limit", "upload_buffer_bytes",
    "memory_bytes", "result_bytes",
)  # fmt: skip


def process_environment(settings: Settings, group: ProcessGroup) -> dict[str, str]:
    """Return the variables of one process: its part of the limits, and what all share."""
    parts = {name: -(-getattr(settings, name) // group.count) for name in DIVIDED}
    # One image of the largest size fits, as it does with one process.
    largest = min(settings.upload_buffer_bytes, settings.max_upload_bytes + FORM_BYTES)
    parts["upload_buffer_bytes"] = max(parts["upload_buffer_bytes"], largest)
    # At least two, so that one request of a large image does not hold all others of a process.
    parts["workers"] = max(2, -(-settings.workers // group.count))
    chosen: dict[str, object] = {
        **parts,
        "threads": settings.threads,
        "fit_threads": settings.fit_threads,
        "results_dir": settings.results_dir or group.results,
        "grpc_port": settings.grpc_port if group.index == 0 else "",
    }
    named = {f"SEGCAL_{name.upper()}": str(value or "") for name, value in chosen.items()}
    named["SEGCAL_RESULT_BYTES"] = str(parts["result_bytes"])  # also 0
    return {**os.environ, **named, "PROMETHEUS_MULTIPROC_DIR": str(group.metrics)}


@dataclass
class ServerProcess:
    """A running server process; the closing of its standard input ends it."""

    group: ProcessGroup
    child: subprocess.Popen[bytes]
    started_at: float  # on the monotonic clock


class Supervisor:
    """Starts `count` processes, starts one that has ended again, and passes signals on.

    SIGTERM and SIGINT drain all processes, SIGHUP loads the models of all again.
    """

    def __init__(
        self, environment: Callable[[ProcessGroup], dict[str, str]], host: str,
        listener: socket.socket, group: ProcessGroup,
    ) -> None:  # fmt: skip
        self._environment, self._host, self._listener = environment, host, listener
        self._group = group
        self._signals: SimpleQueue[int] = SimpleQueue()  # may be filled by a signal's handler
        self._processes: list[ServerProcess] = []
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        """Run the processes until a signal; return the exit status, 0 where all ended with it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.put(number))
        self._processes = [self._start(index) for index in range(self._group.count)]
        while self._processes:
            with suppress(Empty):
                self._pass_on(self._signals.get(timeout=POLL_S))
            for process in list(self._processes):
                if process.child.poll() is not None:
                    self._ended(process)
        return self._status

    def _start(self, index: int, *, replacement: bool = False) -> ServerProcess:
        group = ProcessGroup(self._group.folder, self._group.count, index, replacement)
        descriptor = self._listener.fileno()
        arguments = (descriptor, self._host, group.folder, group.count, index, replacement)
        child = subprocess.Popen(  # noqa: S603 - arguments are not requests' input
            [sys.executable, "-m", "app.cli.server_process", *map(str, arguments)],
            env=self._environment(group),
            stdin=subprocess.PIPE,
            pass_fds=(descriptor,),
            process_group=0,  # an interrupt from the terminal is for the supervisor
        )
        return ServerProcess(group, child, time.monotonic())

    def _pass_on(self, number: int) -> None:
        self._stopping = self._stopping or number != signal.SIGHUP
        for process in self._processes:
            process.child.send_signal(number)

    def _ended(self, process: ServerProcess) -> None:
        """Record the exit of a process, and start another one in its place."""
        code = process.child.returncode
        if not self._stopping and code != SETTINGS_ERROR:
            if time.monotonic() - process.started_at < RESTART_S:
                return  # seen again with the next poll
            log.error("server process %d ended with %d; it is replaced", process.child.pid, code)
        self._processes.remove(process)
        process.group.clear_active_requests()
        mark_process_dead(process.child.pid, str(process.group.metrics))  # type: ignore[no-untyped-call]
        if process.child.stdin is not None:
            process.child.stdin.close()
        if self._stopping:
            # One that a signal has ended had not begun to serve.
            self._status = max(self._status, 0 if code in (0, -signal.SIGTERM) else abs(code))
        elif code == SETTINGS_ERROR:
            self._status = code
            self._pass_on(signal.SIGTERM)
        else:
            self._processes.append(self._start(process.group.index, replacement=True))


def serve_in_processes(settings: Settings, host: str, port: int, count: int) -> int:
    """Serve with several processes until a signal; return the exit status.

    Raises SettingsError for a port that can't be opened.
    """
    logging.basicConfig(format=LOG_FORMATS[settings.log_format], level=logging.INFO)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise SettingsError(
                f"--port: expected a free port of {host}, got {port}: {error.strerror}"
            ) from error
        stack.enter_context(listener)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="segcal-"))
        group = ProcessGroup(Path(folder), count)
        group.create()
        log.info("serving with %d processes on port %d", count, listener.getsockname()[1])
        return Supervisor(
            lambda group: process_environment(settings, group), host, listener, group
        ).run()
