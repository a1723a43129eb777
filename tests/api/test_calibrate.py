"""`/calibrate` over HTTP: uploads, jobs, activation, and every kind of failure."""

import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.calibration.registry import build
from app.evaluation.charts import reliability_curves, reliability_diagram
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import new_id
from tests.conftest import MakeClient, MakeServer
from tests.factories.jobs import wait_for, worker_pid
from tests.factories.models import write_card, write_onnx_model
from tests.factories.service import (
    RED,
    encoded,
    open_client,
    post,
    publish_temperature,
    solid,
    wait_until_ready,
)
from tests.factories.validation_data import VOID, archive, npy, npz, overconfident

TOKEN = "a token for tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
LOGITS, LABELS = overconfident()
UPLOAD = {"logits": npz(logits=LOGITS, labels=LABELS)}
PIXELS = np.arange(40)
TABLE = {"logits": npz(logits=LOGITS[:, :, 0, 0][PIXELS % len(LOGITS)], labels=PIXELS % 3,
                       image_index=PIXELS % 4)}  # fmt: skip
NOWHERE = "/calibrate/20260101T000000000000Z-abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibrate")
    write_onnx_model(root / "models", "tiny")
    return root


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[TestClient]:
    """Open a service for the tests of this module, with a limit of half a megabyte."""
    settings = load_settings(
        models_dir=folder / "models",
        artifacts_dir=folder / "artifacts",
        threads=1,
        admin_token=TOKEN,
        max_calibration_bytes=500_000,
    )
    with open_client(settings) as opened:
        yield opened


def send(
    client: TestClient | httpx2.Client, files: dict[str, bytes] = UPLOAD, **fields: str
) -> httpx2.Response:
    """Upload files under a client's names, which the service ignores."""
    named = {field: ("../../etc/passwd", data) for field, data in files.items()}
    return client.post("/calibrate", files=named, data=fields, headers=ADMIN)


def events(client: TestClient | httpx2.Client, location: str) -> list[dict[str, object]]:
    """Read a job's events until it ends."""
    with client.stream("GET", f"{location}/events", timeout=None) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]


def jobs_folder(artifacts_dir: Path) -> list[str]:
    """List the folder of jobs without lock files."""
    names = (path.name for path in (artifacts_dir / ".jobs").iterdir())
    return sorted(n for n in names if not n.startswith((".owner-", ".lock", ".fitting")))


def assert_problem(answer: httpx2.Response, status: int, detail: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert re.search(detail, answer.json()["detail"]), answer.text


# Authentication


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/calibrate"), ("DELETE", NOWHERE), ("POST", f"{NOWHERE}/retry")],
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "x"}])
def test_change_needs_the_admin_token(service, method, path, headers):
    answer = service.request(method, path, headers=headers)

    assert_problem(answer, 401, "expected a bearer token")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", [NOWHERE, f"{NOWHERE}/events", "/calibrate/x"])
def test_unknown_job_is_not_found(service, path):
    assert_problem(service.get(path), 404, "expected (the id of a calibration job|a path of this)")


def test_unknown_job_can_not_be_changed(service):
    assert_problem(service.delete(NOWHERE, headers=ADMIN), 404, "the id of a calibration job")
    assert_problem(service.post(f"{NOWHERE}/retry", headers=ADMIN), 404, "the id of a calibration")


# Rejected uploads, which leave no file


@pytest.mark.parametrize(
    ("method", "expected", "got"),
    [("lts", "maps of images", "a table"), ("lts_image", "images", "logits alone")],
)
def test_upload_not_comparable_with_active_version_is_rejected(
    make_client: MakeClient, models_dir, artifacts_dir, method, expected, got
):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2.0)
    store = ArtifactStore(artifacts_dir)
    described = store.versions("tiny")[0].model_copy(
        update={"id": new_id(method), "method": method}
    )
    version = store.publish(described, build(method, 3), {}).id
    store.activate("tiny", version, "for a test", by="a test")
    client = make_client(admin_token=TOKEN)
    answer = send(client, TABLE, method="temperature", activate="never")

    assert_problem(answer, 422, f"expected {expected}, .* {version} .* got {got}")
    assert client.get("/calibrate").json()["jobs"] == []


@pytest.fixture
def no_new_jobs(service: TestClient, folder: Path) -> Iterator[None]:
    before = jobs_folder(folder / "artifacts")
    yield
    assert jobs_folder(folder / "artifacts") == before


@pytest.mark.parametrize(
    ("files", "fields", "status", "detail"),
    [
        ({}, {}, 400, "breaks off|multipart"),
        (UPLOAD, {"model": "street"}, 404, r"one of the models \['tiny'\], got 'street'"),
        (UPLOAD, {"method": "magic"}, 422, "expected auto or one of .*, got magic"),
        (UPLOAD, {"method": "vector"}, 422, "allow_label_changes with the method vector"),
        (UPLOAD, {"activate": "perhaps"}, 422, "activate: .*'perhaps'"),
        (UPLOAD, {"allow_label_changes": "x"}, 422, "allow_label_changes: "),
        (UPLOAD, {"augmentation": "corruptions"}, 422, "augmentation: .*'none'.*'corruptions'"),
        (UPLOAD, {"method": "lts_image"}, 422, "expected images with the method lts_image"),
        (TABLE, {"method": "lts"}, 422, r"maps \[N,K,h,w\] with the method lts, .* a table"),
        (TABLE, {"method": "selective+lts"}, 422, "with the method selective"),
        (UPLOAD, {"seed": "-1"}, 422, "seed: .*'-1'"),
        (UPLOAD, {"ignore_index": "1.5"}, 422, "ignore_index: "),
        (UPLOAD, {"routing": "firm"}, 422, "routing: Input should be 'soft' or 'hard', got 'firm'"),
        (UPLOAD, {"routing": "hard"}, 422, "routing with one of the methods selective, .* auto"),
        (UPLOAD, {"method": "ets", "mispredicted_temperature": "2"}, 422, "got it with ets"),
        (UPLOAD, {"method": "selective", "mispredicted_temperature": "0"}, 422, "equal to 0.05"),
        (UPLOAD, {"method": "metacal", "rejected_temperature": "1e5"}, 422, "equal to 10000"),
        (UPLOAD, {"method": "metacal", "rejected_temperature": "nan"}, 422, "rejected_temperature"),
        (UPLOAD, {"note": "x" * 1001}, 422, "note: "),
        (UPLOAD, {"note": "x" * 9000}, 422, "note: expected a text of at most 8192 bytes"),
        (UPLOAD, {"metod": "auto"}, 422, "expected the fields .*, got 'metod'"),
        ({**UPLOAD, "extra": b""}, {}, 422, "expected the fields .*, got 'extra'"),
        ({"logits": b"junk"}, {}, 400, "4 bytes of another kind"),
        ({"logits": npy(LOGITS)}, {}, 422, "got no labels"),
        ({"logits": npy(LOGITS), "labels": npy(LABELS + 3)}, {}, 422, r"labels in 0\.\.2 or 255"),
        ({"logits": npy(LOGITS * np.nan), "labels": npy(LABELS)}, {}, 422, "NaN or infinity"),
        ({"logits": npy(LOGITS[:, :2]), "labels": npy(LABELS)}, {}, 422, "the model's 3 classes"),
        ({"logits": npy(LOGITS[:1]), "labels": npy(LABELS[:1])}, {}, 422, "at least 2 images"),
        (
            {"logits": archive({"logits.npy": npy(np.zeros((999, 3, 30, 30), np.float32))})},
            {},
            413,
            "at most 500000 bytes once unpacked",
        ),
        ({"logits": b"x" * 600_000}, {}, 413, "a body of at most"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_new_jobs")
def test_invalid_upload_is_rejected(service, files, fields, status, detail):
    if not files:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = service.post("/calibrate", content=b"--x\r\n", headers=ADMIN | kind)
    else:
        answer = send(service, files, **fields)

    assert_problem(answer, status, detail)


@pytest.mark.usefixtures("no_new_jobs")
def test_option_in_the_query_is_rejected(service):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = service.post("/calibrate?method=temperature", content=b"", headers=ADMIN | kind)

    assert_problem(answer, 422, r"expected options as form fields, got \['method'\] in the query")


@pytest.mark.usefixtures("no_new_jobs")
@pytest.mark.parametrize(
    ("kind", "body", "status", "detail"),
    [
        ("application/json", b"{}", 415, "expected multipart/form-data"),
        ("multipart/form-data", b"", 415, "with a boundary"),
        ("multipart/form-data; boundary=" + "x" * 99, b"", 415, "with a boundary"),
        ("multipart/form-data; boundary=x", b"", 400, "breaks off"),
        ("multipart/form-data; boundary=x", b"hello", 400, "expected multipart/form-data, got"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=note\r\n\r\na\r\n--x\r\n"
            b"Content-Disposition: form-data; name=note\r\n\r\nb\r\n--x--\r\n",
            422,
            "each field once, got note twice",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nA: b\r\n\r\na\r\n--x--\r\n",
            422,
            "expected the fields",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\n" + b"A" * 100_000 + b": b\r\n\r\na\r\n--x--\r\n",
            400,
            "expected multipart/form-data, got",
        ),
    ],
)
def test_body_that_is_no_form_is_rejected(service, kind, body, status, detail):
    answer = service.post("/calibrate", content=body, headers=ADMIN | {"Content-Type": kind})

    assert_problem(answer, status, detail)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limit the size of files in bytes during the block, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("no_new_jobs")
def test_full_disk_is_a_507(service):
    with files_up_to(10_000):
        assert_problem(send(service), 507, "no space left")
        packed = npz(True, logits=np.zeros_like(LOGITS), labels=LABELS * 0)
        assert len(packed) < 10_000
        assert_problem(send(service, {"logits": packed}), 507, "no space left")


# From upload to activation


def test_upload_becomes_the_active_calibrator(service, folder):
    before = post(service, solid(RED))
    assert before.headers["x-calibrator"] == "none"

    answer = send(service, method="temperature", note="from the test", seed="4")
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/calibrate/{answer.json()['id']}"
    assert answer.json()["state"] in ("queued", "running")
    reported = events(service, answer.headers["location"])
    last = reported[-1]
    after = post(service, solid(RED))

    assert last["state"] == "succeeded", last
    assert [job["progress"] for job in reported] == sorted(job["progress"] for job in reported)  # type: ignore[type-var]
    assert last == service.get(answer.headers["location"]).json()
    assert last in service.get("/calibrate").json()["jobs"]
    assert (last["progress"], last["activated"], last["error"]) == (1, True, None)
    assert after.headers["x-calibrator"] == last["calibrator"]
    assert after.json()["mean_confidence"] < before.json()["mean_confidence"]
    report = last["report"]
    assert isinstance(report, dict)
    assert report == service.get(f"/calibrators/{last['calibrator']}/report").json()
    assert report["decision"]["activated"]
    assert report["seed"] == 4
    assert report["parameters"]["temperature"] == pytest.approx(3, rel=0.25)
    diagram = service.get(f"/calibrators/{last['calibrator']}/reliability.svg")
    assert diagram.headers["content-type"] == "image/svg+xml"
    assert diagram.content == reliability_diagram(reliability_curves(report))
    history = (folder / "artifacts" / "tiny" / "history.jsonl").read_text().splitlines()
    assert f"job {last['id']}" in history[-1]
    # A succeeded job can be neither cancelled nor retried, and its upload is deleted.
    location = answer.headers["location"]
    assert_problem(service.delete(location, headers=ADMIN), 409, "not ended, got one succeeded")
    assert_problem(service.post(f"{location}/retry", headers=ADMIN), 409, "got one succeeded")
    assert not (folder / "artifacts" / ".jobs" / str(last["id"]) / "upload").exists()


@pytest.mark.parametrize(
    ("method", "options", "parameters"),
    [
        (
            "selective+temperature",
            {"routing": "hard", "mispredicted_temperature": 2.0},
            {"t_ok": 1, "t_mis": 2},
        ),
        ("metacal", {"rejected_temperature": 10.0}, {"rejected_temperature": 10}),
    ],
)
def test_options_of_a_method_are_fitted_and_recorded(service, method, options, parameters):
    fields = {name: str(value) for name, value in options.items()}
    answer = send(service, UPLOAD, method=method, activate="never", **fields)
    assert answer.status_code == 202, answer.text
    last = events(service, answer.headers["location"])[-1]

    assert last["state"] == "succeeded", last
    record = service.get(f"/calibrators/{last['calibrator']}").json()
    assert record["options"] == last["report"]["options"] == options  # type: ignore[index]
    assert record["summary"] == pytest.approx(record["summary"] | parameters)


@pytest.fixture
def client_of_void_nine(make_client: MakeClient, models_dir: Path) -> TestClient:
    """Open a service whose model has 3 classes and the void label 9."""
    write_card(models_dir / "tiny", ignore_index=9)
    return make_client(admin_token=TOKEN)


def uploads_with(*voids: int) -> Iterator[dict[str, bytes]]:
    """Yield logits, a table and images whose labels contain each of the void labels."""
    labels = np.where(LABELS == VOID, 0, LABELS)
    pixels = PIXELS % 3
    truth = np.zeros((8, 12), np.uint8)
    for place, void in enumerate(voids):
        labels[:, place] = pixels[place::10] = truth[place] = void
    yield {"logits": npz(logits=LOGITS, labels=labels)}
    yield {"logits": npz(logits=LOGITS[:, :, 0, 0][PIXELS % len(LOGITS)], labels=pixels,
                         image_index=PIXELS % 4)}  # fmt: skip
    images = {f"{i}.png": encoded(solid(RED)) for i in range(2)}
    maps = {f"{i}.png": encoded(truth) for i in range(2)}
    yield {"images": archive(images), "labels": archive(maps)}


@pytest.mark.parametrize(("void", "used"), [(9, 9), (255, 255), (None, 9)])
def test_void_label_is_that_of_the_card_or_255(client_of_void_nine, artifacts_dir, void, used):
    for files in uploads_with(*([] if void is None else [void])):
        answer = send(client_of_void_nine, files, method="temperature")
        assert answer.status_code == 202, answer.text
        request = artifacts_dir / ".jobs" / answer.json()["id"] / "request.json"
        assert json.loads(request.read_bytes())["ignore_index"] == used


def test_ambiguous_void_labels_are_rejected(client_of_void_nine):
    for files in uploads_with(9, 255):
        answer = send(client_of_void_nine, files)
        assert_problem(answer, 422, "one label for void pixels, got both 9, .* and 255; name one")
        answer = send(client_of_void_nine, files, ignore_index="9")
        assert_problem(answer, 422, r"labels in 0\.\.2 or 9 for void, got \S*255")


def test_fit_may_certify_nothing(service):
    answer = send(service, method="temperature", activate="never", certify="false")
    assert answer.status_code == 202, answer.text
    last = events(service, answer.headers["location"])[-1]

    uncertified = last["report"]["certification"]["uncertified"]  # type: ignore[index]
    assert {*uncertified.values()} == {"the fit was asked to certify nothing"}


def test_fit_on_images_with_activate_never_is_not_activated(service, folder):
    truth = np.zeros((8, 12), np.uint8)
    truth[:, 8:] = 1
    images = {f"{i}.png": encoded(solid(RED)) for i in range(4)}
    maps = {f"{i}.png": encoded(truth) for i in range(4)}
    active = service.get("/models/tiny").json()["active_calibrator"]
    files = {"images": archive(images), "labels": archive(maps)}
    answer = send(service, files, method="temperature", activate="never")
    assert answer.status_code == 202, answer.text
    last = events(service, answer.headers["location"])[-1]

    assert last["state"] == "succeeded", last
    assert not last["activated"]
    assert last["calibrator"] != active
    assert service.get("/models/tiny").json()["active_calibrator"] == active
    assert post(service, solid(RED)).headers["x-calibrator"] == (active or "none")
    # Right with 2/3: e^(4/T) / (e^(4/T) + 2) = 2/3 at T = 4 / ln 4, less the prior's part.
    report = last["report"]
    assert isinstance(report, dict)
    assert report["parameters"]["temperature"] == pytest.approx(4 / np.log(4), rel=0.05)


def test_full_queue_is_a_429_until_a_job_is_cancelled(make_client: MakeClient, artifacts_dir):
    client = make_client(admin_token=TOKEN, job_limit=1)
    first = send(client)
    full = send(client)

    assert first.status_code == 202
    assert_problem(full, 429, "fewer than 1 calibration jobs waiting, got 1")
    assert full.headers["retry-after"]
    assert jobs_folder(artifacts_dir) == [first.json()["id"]]
    cancelled = client.delete(first.headers["location"], headers=ADMIN)
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert events(client, first.headers["location"])[-1]["state"] == "cancelled"
    assert send(client).status_code == 202


def test_interrupted_upload_is_removed(make_server: MakeServer, artifacts_dir):
    url = make_server(admin_token=TOKEN)
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /calibrate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9999999\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="logits"; filename="x"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"x" * 3_000_000)
        wait_for(lambda: any((artifacts_dir / ".jobs").glob(".incoming-*/upload/logits")), "bytes")
    wait_for(lambda: jobs_folder(artifacts_dir) == [], "the folder to be removed")


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Sample this process's resident memory while a block runs."""

    def __enter__(self) -> "Peak":
        self.start = self.most = resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, resident_bytes())


def test_memory_does_not_grow_with_the_upload(make_server: MakeServer, tmp_path):
    url = make_server(admin_token=TOKEN)
    boundary, images, side = "x", 100, 540
    logits_header, labels_header = io.BytesIO(), io.BytesIO()
    for header, kind, shape in (
        (logits_header, "<f2", (images, 3, side, side)),
        (labels_header, "|u1", (images, side, side)),
    ):
        described = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
    logits = np.zeros((3, side, side), np.float16).tobytes()
    labels = np.zeros((side, side), np.uint8)

    def part(name: str) -> bytes:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        return head.encode()

    def body() -> Iterator[bytes]:
        yield part("labels") + labels_header.getvalue()
        for image in range(images):
            yield (labels + 7 * (image == images - 1)).tobytes()
        yield b"\r\n" + part("logits") + logits_header.getvalue()
        for _ in range(images):
            yield logits
        yield f"\r\n--{boundary}--\r\n".encode()

    headers = ADMIN | {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with httpx2.Client(base_url=url, timeout=120) as client, Peak() as peak:
        answer = client.post("/calibrate", content=body(), headers=headers)

    # Rejected for the last image, so the whole upload was received and read.
    assert_problem(answer, 422, "got 7 in image 99")
    assert images * (len(logits) + labels.nbytes) > 200_000_000
    assert peak.most - peak.start < 60_000_000


@contextmanager
def server_process(models_dir: Path, artifacts_dir: Path) -> Iterator[tuple[str, int]]:
    """Run `segcal serve` in a separate process; yields its address and process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = os.environ | {
        "SEGCAL_MODELS_DIR": str(models_dir),
        "SEGCAL_ARTIFACTS_DIR": str(artifacts_dir),
        "SEGCAL_ADMIN_TOKEN": TOKEN,
        "SEGCAL_THREADS": "1",
    }
    command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
    with ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(command, env=environment))
        stack.callback(server.kill)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: responds(url), "the server")
        with httpx2.Client(base_url=url) as client:
            wait_until_ready(client)
        yield url, server.pid


def responds(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/healthz").status_code == 200
    return False


def test_server_killed_during_a_fit_recovers_its_jobs(
    models_dir: Path, artifacts_dir: Path, make_client: Callable[..., TestClient]
):
    active = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    logits, labels = overconfident(60, 64, 64)
    large = npz(logits=logits, labels=labels)
    with server_process(models_dir, artifacts_dir) as (url, pid):
        with httpx2.Client(base_url=url, timeout=60) as client:
            location = send(client, {"logits": large}, method="selective").headers["location"]
            queued = send(client).headers["location"]
            wait_for(lambda: "fitting" in client.get(location).json()["stage"], "the fit")
            worker = worker_pid(artifacts_dir / ".jobs" / location.rpartition("/")[2])
            assert worker is not None
            assert os.getpriority(os.PRIO_PROCESS, worker) >= 10
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the fit to end with its server")

    client = make_client(admin_token=TOKEN)
    assert [job["state"] for job in client.get("/calibrate").json()["jobs"]] == ["interrupted"] * 2
    assert post(client, solid(RED)).headers["x-calibrator"] == active
    assert ArtifactStore(artifacts_dir).versions("tiny")[0].id == active
    again = client.post(f"{queued}/retry", headers=ADMIN)
    assert (again.status_code, again.headers["location"]) == (202, queued)
    assert client.delete(queued, headers=ADMIN).json()["state"] == "cancelled"
    given_up = client.delete(location, headers=ADMIN)
    assert (given_up.status_code, given_up.json()["state"]) == (200, "cancelled")


def test_events_end_when_the_server_drains(make_client: MakeClient):
    client = make_client(admin_token=TOKEN)
    location = send(client).headers["location"]
    started = time.monotonic()
    threading.Timer(1.0, client.app.state.segcal.readiness.draining.set).start()  # type: ignore[attr-defined]

    assert events(client, location)[-1]["state"] in ("queued", "running")
    assert time.monotonic() - started < 10
