"""A fit's child process: started with low priority and few threads, followed, and stopped."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypedDict

from app.settings import Settings

log = logging.getLogger(__name__)

GRACE_S = 5.0  # from terminate to kill; a fit that is publishing needs a moment
LOG = "log.txt"
SECRETS = {"admin_token", "api_tokens"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Message(TypedDict, total=False):
    """A line from the child: progress, or the sentence it failed with."""

    stage: str
    progress: float
    error: str


class FitProcess:
    """`python -m app.fit_worker` at work on a job's folder.

    The child reads its settings from a pipe and ends when that closes: with this process at the
    latest.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._stopped: float | None = None  # when it was told to, by the monotonic clock
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        with (folder / LOG).open("wb") as errors:
            self._child = subprocess.Popen(  # noqa: S603 - our own module, on our own folder
                [sys.executable, "-m", "app.fit_worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(settings.fit_threads)),
            )
        threading.Thread(target=self._pump, name="fit-progress", daemon=True).start()
        assert self._child.stdin is not None  # noqa: S101 - it was asked for
        try:
            self._child.stdin.write(settings.model_dump_json(exclude=SECRETS).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            log.warning("a fit ended before it began")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def message(self, timeout_s: float) -> Message | None:
        """Wait for a line of the child, empty where none came in time; None when it has ended."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            return {}
        if line is None:
            return None
        message: Message = json.loads(line)
        return message

    def stop(self) -> None:
        """Ask the child to end, and when asked again after a while make it end."""
        if self._stopped is None:
            self._stopped = time.monotonic()
            self._child.terminate()
        elif time.monotonic() - self._stopped > GRACE_S:
            self._child.kill()

    def close(self) -> str:
        """Wait for the end, forcing it if need be, and say how a child ended that did not say."""
        assert self._child.stdin is not None  # noqa: S101 - it was asked for
        try:
            code = self._child.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        try:
            self._child.stdin.close()
        except BrokenPipeError:
            log.debug("a fit ended before it read its settings")
        if code < 0:
            name = signal.Signals(-code).name
            return f"expected the fit to finish, got its process ended by {name} (out of memory?)"
        return f"expected the fit to finish, got an end with code {code}; {LOG} says more"

    def _pump(self) -> None:
        """Pass the child's lines on until it ends."""
        assert self._child.stdout is not None  # noqa: S101 - it was asked for
        with self._child.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)
