"""Processes that the tests of clients talk to: the service, and an inference server of KServe.

The clients' environment has other packages than the service, which runs in its own: the Python of
SERVICE_PYTHON, by default that of `.venv`.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
SERVICE_PYTHON = os.environ.get("SERVICE_PYTHON", str(ROOT / ".venv/bin/python"))
START_S = 180


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Process:
    """A server as a process, ready where `ready_path` is answered with 200."""

    command: list[str]
    port: int
    ready_path: str
    environment: Mapping[str, str]
    running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        self.running = subprocess.Popen(self.command, cwd=ROOT, env=environment)
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            assert self.running.poll() is None, f"expected a server, got {self.running.returncode}"
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Return whether the server is ready."""
        try:
            with urlopen(f"{self.url}{self.ready_path}", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, ConnectionError, TimeoutError):
            return False

    def kill(self) -> None:
        """End the process at once."""
        if self.running is not None:
            self.running.kill()
            self.running.wait()


@contextmanager
def running(process: Process) -> Iterator[Process]:
    """Run a process for the block."""
    process.start()
    try:
        yield process
    finally:
        process.kill()


def service(folder: Path, models: Path = ROOT / "models", **settings: object) -> Process:
    """Return the service with bundled calibrators, whose state lies below a folder."""
    artifacts = folder / "artifacts"
    shutil.copytree(ROOT / "calibration_artifacts", artifacts)
    port = free_port()
    environment = {"MODELS_DIR": models, "ARTIFACTS_DIR": artifacts, "ADMIN_TOKEN": "x" * 8}
    return Process(
        [SERVICE_PYTHON, "-m", "app", "serve", "--port", str(port)],
        port,
        "/readyz",
        {f"SEGCAL_{key.upper()}": str(value) for key, value in (environment | settings).items()},
    )


def kserve_server(path: Path, name: str) -> Process:
    """Return an inference server of KServe that returns the logits of an ONNX file."""
    port = free_port()
    command = [sys.executable, "-m", "tests.clients.kserve_server", str(path), name, str(port)]
    return Process(command, port, f"/v2/models/{name}/ready", {})
