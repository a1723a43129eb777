"""Processes that tests of other people's clients talk to: this service, and Label Studio.

The clients' environment has other packages than the service, which runs in its own: the Python of
SERVICE_PYTHON, by default that of `.venv`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
SERVICE_PYTHON = os.environ.get("SERVICE_PYTHON", str(ROOT / ".venv/bin/python"))
START_S = 900  # Label Studio first creates its database, which takes minutes on a loaded machine
LABEL_STUDIO_TOKEN = "0123456789abcdef0123456789abcdef01234567"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def call(url: str, body: object = None, token: str = "", method: str | None = None) -> Any:
    """Send JSON, or bytes of an image, and return the JSON of the response."""
    headers = {"Authorization": token} if token else {}
    data = None
    if isinstance(body, bytes):
        data, headers["Content-Type"] = body, "image/png"
    elif body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    request = Request(url, data, headers, method=method)
    try:
        with urlopen(request, timeout=120) as response:
            return json.loads(response.read() or b"null")
    except HTTPError as error:
        raise AssertionError(f"{url}: {error.code} {error.read()[:2000]!r}") from error


def wait_until(done: Any, what: str, seconds: float = START_S) -> Any:
    """Call `done` until it returns something true; return that."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := done():
                return found
        except (URLError, ConnectionError, TimeoutError, AssertionError):
            pass
        assert time.monotonic() < deadline, f"expected {what} within {seconds} s"
        time.sleep(0.5)


@contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a process for the block; its output goes to a file."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def serve_nuclei(folder: Path, **settings: str) -> Iterator[str]:
    """Serve the bundled model of nuclei with its calibrator; yield the address of the service."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "nuclei").symlink_to(ROOT / "models" / "nuclei")
    shutil.copytree(ROOT / "calibration_artifacts/nuclei", folder / "artifacts/nuclei")
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SEGCAL_")},
        "PYTHONPATH": str(ROOT),
        "SEGCAL_MODELS_DIR": str(folder / "models"),
        "SEGCAL_ARTIFACTS_DIR": str(folder / "artifacts"),
        **{f"SEGCAL_{name.upper()}": value for name, value in settings.items()},
    }
    command = [SERVICE_PYTHON, "-m", "app", "serve", "--port", str(port)]
    with running(command, environment, folder / "service.log"):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: call(f"{url}/readyz"), "the service")
        yield url


@contextmanager
def run_label_studio(folder: Path) -> Iterator[str]:
    """Run Label Studio with one user; yield its address.

    LABEL_STUDIO_DATA names a folder whose database is used again.
    """
    data = Path(os.environ.get("LABEL_STUDIO_DATA", folder / "data"))
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        # Both refuse addresses of this machine otherwise.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "WEBHOOK_TIMEOUT": "30",
    }
    command = [
        str(Path(sys.executable).with_name("label-studio")), "start", "--no-browser",
        "--data-dir", str(data), "--host", url, "--internal-host", "127.0.0.1",
        "--port", str(port), "--enable-legacy-api-token", "--username", "a@example.org",
        "--password", "of-the-test", "--user-token", LABEL_STUDIO_TOKEN,
    ]  # fmt: skip
    with running(command, environment, folder / "label-studio.log"):
        token = f"Token {LABEL_STUDIO_TOKEN}"
        wait_until(lambda: call(f"{url}/api/version", token=token), "Label Studio")
        yield url
