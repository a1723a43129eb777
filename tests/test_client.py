"""The client with a running service, and with servers of prepared responses."""

import io
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import anyio
import httpx2
import numpy as np
import pytest

from app.client import AsyncClient, Client, FitOptions, RetryPolicy, Segmentation
from app.client.retries import parse_retry_after
from app.errors import (
    ArgumentError,
    BusyError,
    ConflictError,
    InputError,
    NotFoundError,
    SegcalError,
    UnauthorizedError,
    UnavailableError,
    UndecodableError,
)
from app.schemas.calibrator import CertifiedThreshold
from tests.conftest import MakeServer
from tests.factories.service import (
    SATURATED_AT_2,
    THIRDS_MASK,
    encoded,
    publish_temperature,
    thirds,
)
from tests.factories.validation_data import npy, overconfident

TOKEN = "a token for tests"
ROOT = Path(__file__).parents[1]
LARGE = ("torch", "onnxruntime", "numba", "fastapi", "matplotlib")


def test_import_of_the_client_loads_nothing_large():
    code = "import sys, app.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set(LARGE).isdisjoint(done.stdout.split())


def test_segment_returns_arrays(make_server: MakeServer, models_dir, artifacts_dir, tmp_path):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    path = tmp_path / "thirds.png"
    path.write_bytes(encoded(thirds()))
    with Client(make_server(api_tokens="alpha"), "alpha") as client:
        found = client.segment(path)
        same = client.segment(thirds(), model="tiny", calibrator=version)
        unsure = client.segment(path.read_bytes(), min_confidence=0.9)
        uncalibrated = client.segment(str(path), calibrator="none", tta="flip")
        mask = client.result(found.id, "mask.png")

    assert (found.mask == THIRDS_MASK).all()
    assert found.mask.dtype == np.uint8
    assert found.confidence.dtype == np.float32
    assert found.confidence[:, 0] == pytest.approx(np.full(8, SATURATED_AT_2), abs=5e-4)
    assert (found.model, found.calibrator, found.guarantee) == ("tiny", version, None)
    assert not found.abstained.any()
    assert (same.mask == found.mask).all()
    assert (same.confidence == found.confidence).all()
    assert unsure.abstained.all()
    assert uncalibrated.calibrator == "none"
    assert mask.startswith(b"\x89PNG")


def test_guarantee_of_a_certified_threshold(make_server: MakeServer, models_dir, artifacts_dir):
    level = CertifiedThreshold(0.1, 0.5, 0.1, 0.9, 0.06, 40)
    publish_temperature(artifacts_dir, models_dir / "tiny", 2, thresholds=(level,))
    with Client(make_server()) as client:
        assert client.segment(thirds(), max_error=0.1).guarantee == "not-measured"
        with pytest.raises(ConflictError, match=r"certified for max_error=0\.01"):
            client.segment(thirds(), max_error=0.01)


def test_describe_returns_statistics_and_the_included_parts(make_server: MakeServer):
    with Client(make_server()) as client:
        found = client.describe(encoded(thirds()), calibrator="none")
        assert found.mask is None
        assert client.describe(thirds(), ("mask", "rle"), calibrator="none").mask is not None

    assert [present.pixels for present in found.classes] == [32, 32, 32]
    assert (found.model, found.width, found.height) == ("tiny", 12, 8)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4), np.uint8)])
def test_array_that_is_no_image_is_rejected(image):
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(ArgumentError, match=r"expected an image uint8 \[H,W,3\], got .*\[4, 4\]"),
    ):
        client.segment(image)


def test_models_and_calibrator_versions(make_server: MakeServer, models_dir, artifacts_dir):
    first = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    second = publish_temperature(artifacts_dir, models_dir / "tiny", 3)
    with Client(make_server(admin_token=TOKEN), TOKEN) as client:
        assert client.models() == [client.model("tiny")] == [client.model()]
        assert client.model().active_calibrator == second
        assert client.activate(first, "the new one drifts").model == "tiny"
        assert client.calibrator(first).active
        listed = client.calibrators("tiny")
        assert listed.damaged == {}
        assert {each.id: each.active for each in listed.calibrators} == {first: True, second: False}
        archive = zipfile.ZipFile(io.BytesIO(client.archive(second)))
        assert f"{second}/manifest.json" in archive.namelist()
        assert client.report(second) == {"chosen": "temperature"}
        with pytest.raises(ConflictError, match="expected a calibrator that is not active"):
            client.delete(first)
        client.delete(second)
        assert [each.id for each in client.calibrators().calibrators] == [first]


def test_calibrate_uploads_files_and_waits_for_the_job(make_server: MakeServer, tmp_path: Path):
    logits, labels = overconfident(16, 32, 32)
    files = {"logits": tmp_path / "a.npy", "labels": tmp_path / "b.npy"}
    files["logits"].write_bytes(npy(logits))
    files["labels"].write_bytes(npy(labels))
    options = FitOptions(method="vector_ti", allow_label_changes=True)
    sent: list[tuple[str, float]] = []
    reported: list[tuple[str, float]] = []
    with Client(make_server(admin_token=TOKEN), TOKEN) as client:
        queued = client.calibrate(files, options, on_progress=lambda *given: sent.append(given))
        job = client.wait(queued.id, lambda *given: reported.append(given))
        version = client.calibrator(job.calibrator or "")
        assert [each.id for each in client.jobs()] == [job.id]
        with pytest.raises(ConflictError, match="expected a failed or interrupted job"):
            client.retry(job.id)
        with pytest.raises(ConflictError, match="expected a job that has not ended"):
            client.cancel(job.id)

    assert sent == sorted(sent)
    assert len(set(sent)) > 2  # a file is sent in pieces
    assert sent[-1] == ("uploading", 1)
    assert reported[-1][1] == 1
    assert job.state == "succeeded"
    assert job.report is not None
    assert job.report["decision"]["activated"] == version.active  # type: ignore[index]
    assert version.method == "vector_ti"


def test_asynchronous_client_returns_what_the_other_one_does(
    make_server: MakeServer, models_dir, artifacts_dir, tmp_path
):
    first = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    publish_temperature(artifacts_dir, models_dir / "tiny", 3)
    logits, labels = overconfident(16, 16, 16)
    (tmp_path / "a.npy").write_bytes(npy(logits))
    (tmp_path / "b.npy").write_bytes(npy(labels))
    files = {"logits": tmp_path / "a.npy", "labels": tmp_path / "b.npy"}
    url = make_server(admin_token=TOKEN)
    reported: list[float] = []

    async def session() -> Segmentation:
        async with AsyncClient(url, TOKEN) as client:
            assert await client.model() == (await client.models())[0]
            assert (await client.activate(first)).active
            assert len((await client.calibrators()).calibrators) == 2
            assert (await client.calibrator(first)).id == first
            assert await client.report(first) == {"chosen": "temperature"}
            assert (await client.archive(first)).startswith(b"PK")
            with pytest.raises(ConflictError):
                await client.delete(first)
            queued = await client.calibrate(files, FitOptions(method="ets", activate="never"))
            job = await client.wait(queued.id, lambda _stage, done: reported.append(done))
            assert (await client.jobs())[0].id == (await client.job(job.id)).id == queued.id
            for change in (client.cancel, client.retry):
                with pytest.raises(ConflictError):
                    await change(job.id)
            assert (await client.describe(thirds())).width == 12
            found = await client.segment(thirds())
            assert (await client.result(found.id, "overlay.png")).startswith(b"\x89PNG")
            return found

    found = anyio.run(session)
    with Client(url) as client:
        other = client.segment(thirds())

    assert reported[-1] == 1
    assert (found.mask == other.mask).all()
    assert (found.confidence == other.confidence).all()
    assert found.calibrator == other.calibrator == first


@pytest.mark.parametrize("token", ["wrong", "schlüssel", None])
def test_error_response_raises_its_detail(make_server: MakeServer, token):
    url = make_server(api_tokens="alpha")
    with Client(url, token) as client:
        with pytest.raises(UnauthorizedError, match="expected a bearer token of this service"):
            client.segment(encoded(thirds()))
        with pytest.raises(NotFoundError, match=r"expected one of .*, got 'a street'"):
            client.model("a street")
    with Client(url, "alpha") as client, pytest.raises(UndecodableError, match="expected a JPEG"):
        client.segment(b"no image")


@pytest.mark.parametrize("url", ["ftp://localhost", "localhost:8000", "http://[::1", "http://a:b"])
def test_invalid_url_is_rejected(url):
    with pytest.raises(ArgumentError, match="expected http:// or https://"):
        Client(url)


def test_missing_service_raises_unavailable_error():
    with (
        Client("http://127.0.0.1:9/") as client,
        pytest.raises(UnavailableError, match=r"expected a service at http://127\.0\.0\.1:9/"),
    ):
        client.models()


@dataclass(frozen=True)
class Prepared:
    """A prepared response."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Serve = Callable[[dict[str, list[Prepared]]], str]


@pytest.fixture
def received() -> list[bytes]:
    """Return the list to which the server of prepared responses adds the bodies of requests."""
    return []


@pytest.fixture
def serve(received: list[bytes]) -> Iterator[Serve]:
    """Serve prepared responses by path, each once and in order, 404 after the last."""
    with ExitStack() as stack:

        def start(responses: dict[str, list[Prepared]]) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    left = responses.get(self.path.partition("?")[0], [])
                    answer = left.pop(0) if left else Prepared("nothing here", 404)
                    kind = "text/event-stream" if self.path.endswith("events") else "text/plain"
                    received.append(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                    self.send_response(answer.status)
                    for name, value in ({"Content-Type": kind} | answer.headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.body.encode())

                do_POST = do_GET  # noqa: N815 - the name that http.server calls

                def log_message(self, *_: object) -> None:
                    """Log nothing."""

            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


def job_json(state: str, progress: float = 0.0, error: str = "null") -> str:
    return (
        f'{{"id": "7", "model": "tiny", "method": "ets", "state": "{state}", "stage": "fitting", '
        f'"progress": {progress}, "created_at": "2026-01-02T03:04:05Z", "error": {error}, '
        '"calibrator": "c", "report": null}'
    )


def test_job_is_followed_after_its_events_end_early(serve: Serve):
    running = [Prepared(job_json("running")), Prepared(job_json("running"))]
    events = [f"data: {job_json('running', done)}\n\n" for done in (0.2, 0.9)]
    url = serve({
        "/segcal/calibrate/7": [*running, Prepared(job_json("succeeded"))],
        "/segcal/calibrate/7/events": [Prepared(event) for event in events],
    })  # fmt: skip
    reported: list[float] = []
    with Client(f"{url}/segcal/") as client:
        job = client.wait("7", lambda _stage, fraction: reported.append(fraction))

    assert job.calibrator == "c"
    assert reported == [0.2, 0.9]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (job_json("failed", error='"expected labels, got none"'), "expected labels, got none"),
        (job_json("cancelled"), "expected the fit to finish, got it cancelled"),
    ],
)
def test_job_that_does_not_succeed_raises_its_error(serve: Serve, job, message):
    url = serve({"/calibrate/7": [Prepared(job)]})
    with Client(url) as client, pytest.raises(InputError, match=message):
        client.wait("7")


def test_responses_of_another_server_are_rejected(serve: Serve):
    url = serve({
        "/calibrate/7": [Prepared(job_json("running"))],
        "/models": [Prepared("<p>hello")],
        "/segment": [Prepared("<p>hello")],
    })  # fmt: skip
    with Client(url) as client:
        with pytest.raises(InputError, match="expected a response of segcal, got 404 Not Found"):
            client.wait("7")
        with pytest.raises(InputError, match="expected a response of segcal, got b'<p>hello'"):
            client.models()
        with pytest.raises(InputError, match="expected a mask and a confidence, got b'<p>hello'"):
            client.segment(b"an image")


@pytest.mark.parametrize("number", [0, 2])
def test_examples_of_the_documentation_run(make_server: MakeServer, capsys, monkeypatch, number):
    text = (ROOT / "docs" / "python-client.md").read_text("utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[number]
    monkeypatch.chdir(ROOT)
    exec(code.replace("http://127.0.0.1:8000", make_server()), {})

    assert "(360, 480)" in capsys.readouterr().out


BUSY = Prepared('{"detail": "expected fewer requests"}', 429, {"Retry-After": "0"})
LOADING = Prepared('{"detail": "expected a ready service"}', 503, {"Retry-After": "0"})
MODELS = Prepared('{"models": [], "refused": {}}')


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_rejected_request_is_sent_again(serve: Serve, received, tmp_path, kind):
    url = serve({
        "/models": [BUSY, LOADING, MODELS],
        "/calibrate": [BUSY, Prepared(job_json("queued"), 202)],
    })  # fmt: skip
    (tmp_path / "a.npy").write_bytes(b"logits")
    files = {"logits": tmp_path / "a.npy"}

    async def session() -> None:
        async with AsyncClient(url) as client:
            assert await client.models() == []
            assert (await client.calibrate(files)).state == "queued"

    if kind is Client:
        with Client(url) as client:
            assert client.models() == []
            assert client.calibrate(files).state == "queued"
    else:
        anyio.run(session)

    assert len(received) == 5
    assert [b"\r\nlogits\r\n" in body for body in received[3:]] == [True, True]


@pytest.mark.parametrize(("answer", "error"), [(BUSY, BusyError), (LOADING, UnavailableError)])
def test_error_is_raised_after_the_last_retry(serve: Serve, received, answer, error):
    url = serve({"/models": [answer] * 9})
    for retries in (0, 2):
        received.clear()
        with Client(url, retries=RetryPolicy(retries)) as client, pytest.raises(error):
            client.models()
        assert len(received) == 1 + retries


def test_other_errors_are_raised_at_once(serve: Serve, received):
    url = serve({"/models": [Prepared('{"detail": "no room"}', 507)] * 2})
    with Client(url) as client, pytest.raises(SegcalError, match="no room"):
        client.models()
    assert len(received) == 1


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("", None), ("soon", None), ("-3", None)])
def test_retry_after_in_seconds(value, seconds):
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date():
    due = datetime.now(UTC) + timedelta(seconds=90)
    assert parse_retry_after(format_datetime(due, usegmt=True)) == pytest.approx(90, abs=15)
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_waits_double_and_are_bounded():
    policy = RetryPolicy(retries=5, max_wait_s=3)
    rejected = httpx2.Response(429, headers={"Retry-After": "600"})

    assert list(policy.waits()) == [0.5, 1, 2, 3, 3]
    assert policy.wait_s(rejected, 0.5) == 3
    assert policy.wait_s(httpx2.Response(503), 0.5) == 0.5
    assert policy.wait_s(rejected, None) is None
    assert policy.wait_s(httpx2.Response(500, headers={"Retry-After": "1"}), 0.5) is None
