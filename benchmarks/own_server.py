"""A server in a process of its own, and what its memory comes to."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

TOKEN = "a token for benchmarks"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
START_S = 300
MIB = 1 << 20


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int
    artifacts: Path


@contextmanager
def serving(models: Path, **settings: str | int | Path) -> Iterator[Server]:
    """Start `segcal serve` over a folder of models and artefacts of its own; ready when given."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="segcal-benchmark-") as name:
        chosen = {"MODELS_DIR": models, "ARTIFACTS_DIR": name, "ADMIN_TOKEN": TOKEN, **settings}
        environment = {f"SEGCAL_{key}": str(value) for key, value in chosen.items()}
        command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
        log = Path(name) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=os.environ | environment, stdout=output, stderr=output
            )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process, log)
            yield Server(url, process.pid, Path(name))
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Ask /readyz until it says so."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz").status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"expected a server that gets ready, got: {log.read_text()[-2000:]}")


def memory(pid: int, what: str = "VmRSS") -> int:
    """Read a figure of a process's memory in bytes; `VmHWM` is the peak of `VmRSS`."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"expected {what} of process {pid}, got none")
    return int(found[1]) * 1024


def children(pid: int) -> list[int]:
    """List a process's own children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
