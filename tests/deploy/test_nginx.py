"""`deploy/nginx/segcal.conf` in front of a service, with TLS."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.storage.files import locked
from tests.api.test_calibrate import LABELS, LOGITS, TOKEN
from tests.conftest import MakeServer
from tests.factories.jobs import wait_for
from tests.factories.service import encoded, thirds
from tests.factories.validation_data import npz
from tests.fuzz.targets import FORM, form_body

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "segcal.conf"
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(
    NGINX is None or OPENSSL is None,
    reason="expected nginx and openssl: apt install nginx-light openssl",
)
Send = Callable[[str, bytes | None], tuple[int, bytes]]
CONNECTIONS = 32  # of one client


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


@dataclass(frozen=True)
class Proxy:
    """An nginx before a service: its port and the TLS of its clients."""

    port: int
    context: ssl.SSLContext

    def connection(self, text: str) -> ssl.SSLSocket:
        """Open a connection and send text on it."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection = self.context.wrap_socket(plain)
        connection.sendall(text.encode())
        return connection


@pytest.fixture
def proxy(make_server: MakeServer, tmp_path: Path) -> Iterator[Proxy]:
    """Run nginx before a service."""
    port = free_port()
    path = write_configuration(tmp_path, make_server(admin_token=TOKEN), port)
    checked = subprocess.run(
        [str(NGINX), "-t", "-c", path], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    context = ssl.create_default_context(cafile=tmp_path / "tls.crt")
    context.check_hostname = False
    with subprocess.Popen([str(NGINX), "-c", path], stderr=subprocess.PIPE) as process:
        wait_for_port(port)
        yield Proxy(port, context)
        process.terminate()


@pytest.fixture
def send(proxy: Proxy) -> Send:
    """Return a function that sends a request through the proxy."""

    def call(url: str, body: bytes | None) -> tuple[int, bytes]:
        request = urllib.request.Request(f"https://127.0.0.1:{proxy.port}{url}", body)
        request.add_header("Content-Type", "image/png")
        try:
            with urllib.request.urlopen(request, context=proxy.context, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    return call


def wait_for_port(port: int) -> None:
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


def test_connections_of_a_client_are_limited(proxy: Proxy):
    head = (
        "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):  # requests whose body does not arrive
            stack.enter_context(proxy.connection(head))
        with proxy.connection("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as one_more:
            assert one_more.recv(12) == b"HTTP/1.1 429"


def test_events_and_uploads_are_not_buffered(proxy: Proxy, artifacts_dir: Path):
    upload = form_body({"logits": npz(logits=LOGITS, labels=LABELS)}, {})
    head = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    jobs = artifacts_dir / ".jobs"
    with locked(jobs / ".fitting"):  # the job stays queued
        text = f"POST /calibrate HTTP/1.1\r\n{head}Content-Type: {FORM['Content-Type']}\r\n"
        with proxy.connection(f"{text}Content-Length: {len(upload)}\r\n\r\n") as connection:
            connection.sendall(upload[:-10])
            wait_for(lambda: bool(list(jobs.glob(".incoming-*"))), "the upload's begin")
            connection.sendall(upload[-10:])
            accepted = connection.recv(65536)
        assert accepted.startswith(b"HTTP/1.1 202"), accepted
        location = re.search(rb"location: (/calibrate/\S+)", accepted, re.IGNORECASE)
        assert location
        with proxy.connection(
            f"GET {location[1].decode()}/events HTTP/1.1\r\n{head}\r\n"
        ) as events:
            received = b""
            while b'"state":"queued"' not in received:
                received += events.recv(65536)
        cancel = f"DELETE {location[1].decode()} HTTP/1.1\r\n{head}\r\n"
        with proxy.connection(cancel) as connection:
            assert connection.recv(12) == b"HTTP/1.1 200"
