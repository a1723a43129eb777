"""Two server processes that share a bucket of S3: links of results, drift, a store that is down."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import pytest

from app.errors import SettingsError
from app.main import create_app
from app.storage.objects import Objects
from tests.api.test_server import Served, serving
from tests.factories.jobs import wait_for
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    SATURATED_AT_2,
    assert_problem,
    post,
    publish_temperature,
    solid,
    thirds,
    wait_until_ready,
)
from tests.serving.test_drift_monitor import reference_to
from tests.storage.buckets import MotoServer, open_moto

pytest.importorskip("moto", reason="expected the packages of `make fleet`")
pytest.importorskip("obstore")

URL = "s3://bucket/artifacts"
TOKEN = "a token for reading"
GREY, RED = (128, 128, 128), (255, 0, 0)
WINDOW = 16
FILES = ("mask.png", "confidence.png?depth=16", "heatmap.png", "overlay.png", "data.npz")


@pytest.fixture
def store() -> Iterator[MotoServer]:
    with pytest.MonkeyPatch.context() as monkeypatch, open_moto(monkeypatch) as opened:
        yield opened


@pytest.fixture
def start(store: MotoServer, tmp_path: Path) -> Iterator[object]:
    """Return a function that starts a replica; all have their artefacts in one bucket."""
    model = write_onnx_model(tmp_path / "models", "tiny")
    confidence = np.full((8, 12), SATURATED_AT_2, np.float32)
    known = [(np.full((8, 12), i % 3, np.uint8), confidence) for i in range(24)]
    publish_temperature(URL, model, 2, reference=reference_to(known))

    with ExitStack() as stack:

        def start_one(name: str, **settings: str) -> Served:
            chosen = {
                "ARTIFACTS_DIR": URL, "STATE_DIR": str(tmp_path / name), "API_TOKENS": TOKEN,
                "DRIFT_WINDOW": str(WINDOW), **settings,
            }  # fmt: skip
            replica = stack.enter_context(serving(tmp_path, None, **chosen))
            replica.client.headers["Authorization"] = f"Bearer {TOKEN}"
            replica.first_answer("/healthz")
            wait_until_ready(replica.client)
            return replica

        yield start_one


@pytest.fixture
def replicas(start) -> list[Served]:
    return [start(name) for name in ("first", "second")]


def divergences(client: httpx2.Client) -> list[float]:
    """Return the divergences of classes and of confidence that a replica's metrics have."""
    text = client.get("/metrics").text
    found = re.findall(r'segcal_drift_divergence\{histogram="(\w+)",model="tiny"\} (\S+)', text)
    return [float(value) for _, value in sorted(found)]


def is_full(replica: Served) -> bool:
    """Return whether a replica's window has `WINDOW` images."""
    return bool(np.isfinite(divergences(replica.client)).all())


def test_link_of_a_replica_is_answered_by_the_other(replicas, store):
    first, second = (replica.client for replica in replicas)
    for giver, reader in ((first, second), (second, first)):
        answer = post(giver, thirds(), min_confidence=0.5).json()
        for file in FILES:
            path = f"/results/{answer['id']}/{file}"
            own, read = giver.get(path), reader.get(path)
            assert (own.status_code, read.status_code) == (200, 200)
            if not file.endswith(".npz"):  # of which the archive holds the time
                assert own.content == read.content
        wrong = {"Authorization": "Bearer another"}
        assert_problem(reader.get(f"/results/{answer['id']}/mask.png", headers=wrong), 401)
    assert_problem(first.get(f"/results/{'0' * 24}/mask.png"), 404)


def test_drift_of_two_replicas_is_that_of_one_that_saw_all_images(start, replicas, tmp_path):
    lone = start("lone", RESULTS_DIR=str(tmp_path / "results"))
    for count, (replica, color) in zip(
        (6, 10), zip(replicas, (GREY, RED), strict=True), strict=True
    ):
        for _ in range(count):
            post(replica.client, solid(color))
            post(lone.client, solid(color))
    expected = divergences(lone.client)
    assert np.isfinite(expected).all()
    for replica in replicas:
        wait_for(partial(is_full, replica), "the windows to be merged")
        assert divergences(replica.client) == pytest.approx(expected, rel=1e-9, abs=1e-15)

    ending, running = replicas
    ending.process.send_signal(signal.SIGTERM)
    assert ending.process.wait(60) == 0
    wait_for(lambda: not is_full(running), "the window of the replica that has ended to drop out")


def test_replicas_serve_while_the_store_is_down(replicas, store):
    first, second = (replica.client for replica in replicas)
    before = post(first, thirds()).json()["links"]["mask"]
    post(second, thirds())
    store.pause()
    try:
        answers = [post(first, thirds()) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        during = [answer.json()["links"]["mask"] for answer in answers]
        assert [first.get(link).status_code for link in (before, *during)] == [200] * 4
        for link in (before, *during):
            assert_problem(second.get(link), 503, "expected the object store to answer")
        assert post(second, thirds()).status_code == 200
    finally:
        store.resume()
    wait_for(lambda: second.get(before).status_code == 200, "the store to answer again")

    def are_written() -> bool:
        post(first, thirds())  # what was not written is written with a later answer
        return all(second.get(link).status_code == 200 for link in during)

    wait_for(are_written, "the results of the outage to be written")


def test_missing_bucket_of_results_stops_the_start(store, make_settings):
    with pytest.raises(SettingsError, match="SEGCAL_RESULTS_DIR: expected a bucket that exists"):
        create_app(make_settings(results_dir="s3://no-such-bucket/results"))


def test_results_may_have_a_bucket_of_their_own(store, make_client):
    store.make_bucket("results")
    first, second = (make_client(results_dir="s3://results/kept") for _ in range(2))
    link = post(first, thirds()).json()["links"]["mask"]

    assert second.get(link).content == first.get(link).content
    assert len(Objects.open("s3://results/kept").modified_at("")) == 1
