"""`deploy/nginx/segcal.conf` in front of a service, with TLS."""

import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.factories.service import encoded, thirds

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "segcal.conf"
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(
    NGINX is None or OPENSSL is None,
    reason="expected nginx and openssl: apt install nginx-light openssl",
)
Send = Callable[[str, bytes | None], tuple[int, bytes]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def write_configuration(folder: Path, upstream: str, port: int) -> Path:
    """Write a configuration of nginx with the file, on ports and with a certificate of the test."""
    subprocess.run(
        [str(OPENSSL), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    text = CONFIGURATION.read_text("utf-8")
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{free_port()};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("server 127.0.0.1:8000;", f"server {upstream.removeprefix('http://')};"),
        ("/etc/nginx/tls", str(folder)),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "segcal.conf").write_text(text, "utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    path = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    path.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {folders} include {folder}/segcal.conf; }}\n"
    )
    return path


@pytest.fixture
def send(make_server: MakeServer, tmp_path: Path) -> Iterator[Send]:
    """Run nginx before a service; return a function that sends a request through it."""
    port = free_port()
    path = write_configuration(tmp_path, make_server(), port)
    checked = subprocess.run(
        [str(NGINX), "-t", "-c", path], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    context = ssl.create_default_context(cafile=tmp_path / "tls.crt")
    context.check_hostname = False

    def call(url: str, body: bytes | None) -> tuple[int, bytes]:
        request = urllib.request.Request(f"https://127.0.0.1:{port}{url}", body)
        request.add_header("Content-Type", "image/png")
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    with subprocess.Popen([str(NGINX), "-c", path], stderr=subprocess.PIPE) as process:
        wait_for(port)
        yield call
        process.terminate()


def wait_for(port: int) -> None:
    """Wait until something listens."""
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("expected nginx to listen")


def test_image_is_segmented_through_the_proxy(send):
    status, answer = send("/segment", encoded(thirds()))
    assert status == 200, answer
    assert b'"model":"tiny"' in answer.replace(b" ", b"")


def test_proxy_rejects_bodies_above_the_limit_of_images_only(send):
    large = bytes((33 << 20) + 1)
    status, answer = send("/segment", large)
    assert (status, b"nginx" in answer) == (413, True)
    status, answer = send("/calibrate", large)
    assert b"nginx" not in answer  # the service's own answer
    assert status in {401, 415}
