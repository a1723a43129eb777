"""Two services that share a bucket, or a folder: links of results, and drift in the metrics."""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.serving import drift_exchange
from app.storage.objects import Objects
from tests.conftest import MakeClient
from tests.factories.jobs import wait_for
from tests.factories.service import (
    SATURATED_AT_2,
    post,
    publish_temperature,
    solid,
    thirds,
)
from tests.serving.test_drift_monitor import reference_to
from tests.storage.buckets import memory_store

WINDOW = 8
BUCKET = "s3://bucket/artifacts"


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each URL of a bucket be a store in memory."""
    stores: dict[str, Any] = defaultdict(memory_store)
    stores[BUCKET]  # skips the test without obstore
    monkeypatch.setattr(Objects, "open", lambda url, *_options: Objects(stores[url]))


@pytest.fixture(params=["bucket", "folder"])
def two(
    request: pytest.FixtureRequest,
    buckets: None,
    make_client: MakeClient,
    models_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[TestClient]:
    """Open two services with an active calibrator, which share what is told by the parameter."""
    monkeypatch.setattr(drift_exchange, "PUBLISH_S", 0.05)
    known = [
        (np.full((8, 12), i % 3, np.uint8), np.full((8, 12), SATURATED_AT_2, np.float32))
        for i in range(24)
    ]
    shared: dict[str, object] = {"artifacts_dir": BUCKET}
    if request.param == "folder":
        shared = {"artifacts_dir": tmp_path / "artifacts", "results_dir": tmp_path / "results"}
    publish_temperature(
        str(shared["artifacts_dir"]), models_dir / "tiny", 2, reference=reference_to(known)
    )
    return [
        make_client(**shared, state_dir=tmp_path / name, drift_window=WINDOW)
        for name in ("first", "second")
    ]


def divergences(client: TestClient) -> list[float]:
    found = re.findall(r"segcal_drift_divergence\{.*\} (\S+)", client.get("/metrics").text)
    return [float(value) for value in found]


def is_full(client: TestClient) -> bool:
    """Return whether a service has divergences: its window has `WINDOW` images."""
    return bool(np.isfinite(divergences(client)).all())


def test_link_of_one_service_is_answered_by_the_other(two: list[TestClient]):
    first, second = two
    links = post(first, thirds()).json()["links"].values()

    assert [second.get(link).status_code for link in links] == [200] * 5


def test_drift_is_that_of_the_answers_of_both(two: list[TestClient], make_client: MakeClient):
    artifacts: Path | str = two[0].app.state.segcal.settings.artifacts_dir  # type: ignore[attr-defined]
    lone = make_client(artifacts_dir=artifacts, results_dir=None, drift_window=WINDOW)
    for client, color in zip(two, ((128, 128, 128), (255, 0, 0)), strict=True):
        for _ in range(WINDOW // 2):
            post(client, solid(color))
            post(lone, solid(color))
    expected = divergences(lone)
    assert np.isfinite(expected).all()
    assert len(expected) == 2

    for client in two:
        wait_for(partial(is_full, client), "both halves of a window to be merged")
        assert divergences(client) == pytest.approx(expected, rel=1e-9, abs=1e-15)
