"""Stores that the contract is tested over: in memory, and moto's server of S3."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# One thread: moto checks the condition of a put and writes in two steps, so that two threads
# could both win, and its objects are in the memory of one process.
MOTO = """
import logging, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel("ERROR")
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", int(sys.argv[1]), app, threaded=False)
print(server.port, flush=True)
server.serve_forever()
"""


def memory_store() -> Any:
    """Return a store in memory, which honours conditions; skips the test without obstore."""
    return pytest.importorskip("obstore.store").MemoryStore()


class MotoServer:
    """moto's S3 server in a process, with one bucket."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", MOTO, str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.make_bucket("bucket")

    def make_bucket(self, name: str) -> None:
        """Create a bucket."""
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass

    @property
    def environment(self) -> dict[str, str]:
        """Return the usual variables of S3 for this server."""
        return {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def pause(self) -> None:
        """Let the server answer nothing: connections are accepted by the system and wait."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server answer again."""
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the server's process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def open_moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[MotoServer]:
    """Run an S3 server, with the variables that point to it."""
    server = MotoServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield server
    finally:
        server.stop()
