"""The HTTP client with a running service, and with servers of invalid responses."""

import base64
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from app.client import Client
from app.errors import ArgumentError, InputError, UnavailableError
from tests.conftest import MakeServer
from tests.factories.service import THIRDS_MASK, decoded, encoded, publish_temperature, thirds
from tests.factories.validation_data import npy, overconfident

TOKEN = "a token for tests"

Serve = Callable[[dict[str, list[str]]], str]


def test_segment_returns_mask_confidence_and_statistics(make_server: MakeServer):
    with Client(make_server(api_tokens="alpha"), "alpha") as client:
        answer = client.segment(encoded(thirds()), {"calibrator": "none"})
        arrays = np.load(io.BytesIO(client.segment_npz(encoded(thirds()), {"model": "tiny"})))

    mask = decoded(base64.b64decode(answer["mask"]["data"]))
    assert (np.asarray(mask) == THIRDS_MASK).all()
    assert (answer["model"], answer["width"], answer["height"]) == ("tiny", 12, 8)
    assert answer["calibration"]["calibrator"] == "none"
    assert (arrays["mask"] == THIRDS_MASK).all()
    assert arrays["confidence"].shape == (8, 12)


def test_models_and_calibrator_versions(make_server: MakeServer, models_dir, artifacts_dir):
    first = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    second = publish_temperature(artifacts_dir, models_dir / "tiny", 3)
    with Client(make_server(admin_token=TOKEN), TOKEN) as client:
        assert client.models() == [client.model("tiny")] == [client.model(None)]
        assert client.model(None)["active_calibrator"] == second
        assert client.activate(first, "the new one drifts")["model"] == "tiny"
        assert client.calibrator(first)["active"]
        listed, damaged = client.calibrators("tiny")
        versions = {version["id"]: version["active"] for version in listed}
        assert damaged == {}
        assert versions == {first: True, second: False}
        archive = zipfile.ZipFile(io.BytesIO(client.archive(second)))
        assert f"{second}/manifest.json" in archive.namelist()


def test_calibrate_uploads_files_and_follows_the_job(make_server: MakeServer, tmp_path: Path):
    logits, labels = overconfident(16, 32, 32)
    files = {"logits": tmp_path / "a.npy", "labels": tmp_path / "b.npy"}
    files["logits"].write_bytes(npy(logits))
    files["labels"].write_bytes(npy(labels))
    fields: dict[str, str | int | bool] = {"method": "vector_ti", "allow_label_changes": True}
    sent: list[tuple[str, float]] = []
    reported: list[tuple[str, float]] = []
    with Client(make_server(admin_token=TOKEN), TOKEN) as client:
        queued = client.calibrate(files, fields, lambda *progress: sent.append(progress))
        job = client.follow_job(queued["id"], lambda *progress: reported.append(progress))
        version = client.calibrator(job["calibrator"])

    assert sent == sorted(sent)
    assert len(set(sent)) > 2  # a file is sent in pieces
    assert sent[-1] == ("uploading", 1)
    assert reported[-1][1] == 1
    assert job["state"] == "succeeded"
    assert job["report"]["decision"]["activated"] == version["active"]
    assert version["method"] == "vector_ti"


@pytest.mark.parametrize("token", ["wrong", "schlüssel", None])
def test_error_response_raises_its_detail(make_server: MakeServer, token):
    url = make_server(api_tokens="alpha")
    with Client(url, token) as client:
        with pytest.raises(InputError, match="expected a bearer token of this service"):
            client.segment(encoded(thirds()), {})
        with pytest.raises(InputError, match=r"expected one of .*, got 'a street'"):
            client.model("a street")


@pytest.mark.parametrize("url", ["ftp://localhost", "localhost:8000", "http://[::1", "http://a:b"])
def test_invalid_url_is_rejected(url):
    with pytest.raises(ArgumentError, match="expected http:// or https://"):
        Client(url, None)


def test_missing_service_raises_unavailable_error():
    with (
        Client("http://127.0.0.1:9/", None) as client,
        pytest.raises(UnavailableError, match=r"expected a service at http://127\.0\.0\.1:9/"),
    ):
        client.models()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve prepared bodies by path, each once and in order, 404 after the last; return the URL."""
    with ExitStack() as stack:

        def start(bodies: dict[str, list[str]]) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    left = bodies.get(self.path, [])
                    kind = "text/event-stream" if self.path.endswith("events") else "text/plain"
                    self.send_response(200 if left else 404)
                    self.send_header("Content-Type", kind)
                    self.end_headers()
                    self.wfile.write(left.pop(0).encode() if left else b"nothing here")

                def log_message(self, *_: object) -> None:
                    """Log nothing."""

            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


def test_job_is_followed_after_its_events_end_early(serve: Serve):
    running = '{"id": "7", "state": "running", "stage": "fitting", "progress": %s}'
    ended = '{"id": "7", "state": "succeeded", "calibrator": "c"}'
    url = serve({
        "/segcal/calibrate/7": [running % 0.1, running % 0.5, ended],
        "/segcal/calibrate/7/events": [f"data: {running % 0.2}\n\n", f"data: {running % 0.9}\n\n"],
    })  # fmt: skip
    reported: list[float] = []
    with Client(f"{url}/segcal/", None) as client:
        job = client.follow_job("7", lambda _stage, fraction: reported.append(fraction))

    assert job["calibrator"] == "c"
    assert reported == [0.2, 0.9]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ('{"state": "failed", "error": "expected labels, got none"}', "expected labels, got none"),
        ('{"state": "cancelled", "error": null}', "expected the fit to finish, got it cancelled"),
    ],
)
def test_job_that_does_not_succeed_raises_its_error(serve: Serve, job, message):
    with (
        Client(serve({"/calibrate/7": [job]}), None) as client,
        pytest.raises(InputError, match=message),
    ):
        client.follow_job("7", lambda _stage, _fraction: None)


def test_responses_of_another_server_are_rejected(serve: Serve):
    url = serve({"/calibrate/7": ['{"state": "running"}'], "/models": ["<p>hello"]})
    with Client(url, None) as client:
        with pytest.raises(InputError, match="expected a response of segcal, got 404 Not Found"):
            client.follow_job("7", lambda _stage, _fraction: None)
        with pytest.raises(InputError, match="expected a response of segcal, got b'<p>hello'"):
            client.models()
