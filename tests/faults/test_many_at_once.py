"""Several clients and server processes on one folder: every response is complete and correct."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest

from app.storage.artifacts import ArtifactStore
from tests.api.test_calibrate import ADMIN, TOKEN, UPLOAD, assert_problem, send
from tests.api.test_server import Served, serving
from tests.factories.jobs import wait_for, worker_pid
from tests.factories.models import write_onnx_model
from tests.factories.service import post, publish_temperature, thirds, wait_until_ready
from tests.faults.stored import assert_no_partial_files, assert_versions_load, history

FLIPS = 20
CLIENTS = 8
JOBS = 2
PAUSE_S = 0.05  # between a client's requests, so that a fit gets time on two cores


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two versions of a calibrator."""
    root = tmp_path_factory.mktemp("many")
    model = write_onnx_model(root / "models", "tiny")
    for temperature in (2, 4):
        publish_temperature(root / "artifacts", model, temperature)
    return root


@pytest.fixture(scope="module")
def pair(shared: Path) -> Iterator[list[Served]]:
    """Start two server processes on that folder."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                serving(shared, ADMIN_TOKEN=TOKEN, JOB_LIMIT=str(JOBS), FIT_THREADS="1")
            )
            for _ in range(2)
        ]
        for server in servers:
            server.first_answer("/healthz")
            wait_until_ready(server.client)
        yield servers


def two_versions(folder: Path) -> list[str]:
    listed = ArtifactStore(folder / "artifacts").versions("tiny")
    return [manifest.id for manifest in listed if manifest.method == "temperature"][-2:]


def activate(server: Served, version: str) -> None:
    answer = server.client.post(f"/calibrators/{version}/activate", headers=ADMIN)
    assert answer.status_code == 200, answer.text


def active_in(server: Served) -> object:
    return server.client.get("/models/tiny").json()["active_calibrator"]


def test_concurrent_activations_are_serialised(pair: list[Served], shared: Path):
    versions, before = two_versions(shared), len(history(shared))

    def flip(number: int) -> None:
        for turn in range(5):
            activate(pair[number % 2], versions[(number // 2 + turn) % 2])

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(flip, range(CLIENTS)))

    lines = history(shared)
    assert len(lines) == before + 5 * CLIENTS
    assert Counter(line["calibrator"] for line in lines[before:]) == dict.fromkeys(versions, 20)
    last = lines[-1]["calibrator"]
    assert [active_in(server) for server in pair] == [last, last]
    assert_no_partial_files(shared)


@contextmanager
def segmenting(servers: list[Served]) -> Iterator[Callable[[], list[httpx2.Response]]]:
    """Segment in eight clients during the block; yields a function that returns the responses."""
    done = threading.Event()
    answers: list[httpx2.Response] = []

    def ask(number: int) -> None:
        url = servers[number % len(servers)].client.base_url
        with httpx2.Client(base_url=url, timeout=120) as client:
            while not done.wait(PAUSE_S):
                answers.append(post(client, thirds()))

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            wait_for(lambda: len(answers) >= CLIENTS or done.is_set(), "the first answers")
            yield lambda: answers
        finally:
            done.set()
        for future in asked:
            future.result()


def more_than(so_far: Callable[[], list[httpx2.Response]], count: int) -> bool:
    return len(so_far()) > count


def test_no_request_fails_during_activations(pair: list[Served], shared: Path):
    versions = two_versions(shared)
    activate(pair[0], versions[1])
    with segmenting(pair) as so_far:
        for turn in range(FLIPS):
            activate(pair[turn % 2], versions[turn % 2])
            wait_for(partial(more_than, so_far, len(so_far()) + 2), "a few answers")
    answers = so_far()

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-calibrator"] for answer in answers} == set(versions)
    # Each confidence is that of the version which its header names.
    confidences = {
        (answer.headers["x-calibrator"], round(answer.json()["mean_confidence"], 6))
        for answer in answers
    }
    assert len(confidences) == 2


def test_five_calibrations_run_beside_eight_segmenting_clients(pair: list[Served], shared: Path):
    root = shared / "artifacts" / ".jobs"

    def calibrate(number: int) -> httpx2.Response:
        with httpx2.Client(base_url=pair[number % 2].client.base_url, timeout=120) as client:
            return send(client, UPLOAD, method="temperature", activate="never")

    def states() -> list[str]:
        listed = pair[0].client.get("/calibrate").json()["jobs"]
        return [job["state"] for job in listed]

    most = 0
    with segmenting(pair) as so_far, ThreadPoolExecutor(5) as pool:
        admitted = list(pool.map(calibrate, range(5)))
        while any(state in ("queued", "running") for state in states()):
            at_work = [path.name for path in root.glob("2*") if worker_pid(path) is not None]
            most = max(most, len(at_work))
    answers = so_far()

    taken = [answer for answer in admitted if answer.status_code == 202]
    assert len(taken) == JOBS
    for answer in admitted:
        if answer not in taken:
            assert_problem(answer, 429, f"fewer than {JOBS} calibration jobs waiting")
            assert int(answer.headers["retry-after"]) >= 1
    assert most == 1
    assert states() == ["succeeded"] * JOBS
    assert {answer.status_code for answer in answers} == {200}
    assert_versions_load(shared)


def test_process_killed_during_activation_releases_lock(pair: list[Served], shared: Path):
    versions = two_versions(shared)
    with serving(shared, ADMIN_TOKEN=TOKEN) as doomed:
        doomed.first_answer("/healthz")
        wait_until_ready(doomed.client)

        def flip() -> None:
            for turn in range(10_000):
                try:
                    activate(doomed, versions[turn % 2])
                except httpx2.TransportError:
                    return

        before = len(history(shared))
        with ThreadPoolExecutor(1) as pool:
            flipping = pool.submit(flip)
            path = shared / "artifacts" / "tiny" / "history.jsonl"
            wait_for(lambda: len(path.read_bytes().splitlines()) > before + 3, "activations")
            doomed.process.kill()
            flipping.result()
    for server, version in zip(pair, versions, strict=True):
        activate(server, version)
        assert [active_in(server) for server in pair] == [version, version]
    assert_versions_load(shared)

    root = shared / "artifacts" / ".jobs"
    wait_for(lambda: len(list(root.glob(".owner-*"))) == 2, "the dead one's lock to go")
