"""Replicas that exchange their drift windows have the figures of one that saw all images."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from app.calibration.predictions import Prediction
from app.errors import UnavailableError
from app.schemas.drift import DriftWindows
from app.serving import drift_exchange
from app.serving.drift_exchange import DriftExchange
from app.serving.drift_monitor import DriftMonitor, DriftPolicy, DriftState
from app.storage.manifest import StoredCalibrator
from app.storage.objects import Objects
from app.storage.publications import FolderPublications, ObjectPublications, Publications
from tests.factories.jobs import wait_for
from tests.serving.test_drift_monitor import (
    Arrays,
    draw_prediction,
    feed,
    reference_to,
    stored,
)
from tests.storage.buckets import memory_store

WINDOW, PATIENCE = 16, 8


@pytest.fixture(params=["folder", "bucket"])
def publications(request: pytest.FixtureRequest, tmp_path: Path) -> Publications:
    if request.param == "folder":
        return FolderPublications(tmp_path / "drift")
    return ObjectPublications(Objects(memory_store()), "drift")


class Replica:
    """A monitor that answers, and exchanges its windows when told to."""

    def __init__(self, publications: Publications, window: int = WINDOW) -> None:
        self.monitor = DriftMonitor(DriftPolicy(window, PATIENCE))
        self.exchange = DriftExchange(self.monitor, publications).exchange

    def feed(self, version: StoredCalibrator, predictions: list[Arrays]) -> None:
        feed(self.monitor, version, predictions)

    @property
    def state(self) -> DriftState:
        return self.monitor.states()["street"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def version(rng: np.random.Generator) -> StoredCalibrator:
    fitted: StoredCalibrator = stored(reference_to([draw_prediction(rng) for _ in range(40)]))
    return fitted


def draw(rng: np.random.Generator, count: int, alpha: float = 8.0) -> list[Arrays]:
    return [draw_prediction(rng, alpha) for _ in range(count)]


def exchange_all(replicas: list[Replica]) -> None:
    """Let each replica read what all have published."""
    for _ in range(2):
        for replica in replicas:
            replica.exchange()


def assert_same_divergence(states: list[DriftState], expected: DriftState) -> None:
    for state in states:
        assert state.divergence == pytest.approx(expected.divergence, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("counts", [(8, 8), (1, 15), (16, 5), (16, 16, 16)])
def test_merged_windows_equal_that_of_one_process(publications, version, rng, counts):
    replicas = [Replica(publications) for _ in counts]
    one = DriftMonitor(DriftPolicy(sum(counts), PATIENCE))
    for replica, count in zip(replicas, counts, strict=True):
        images = draw(rng, count, alpha=6.0)
        replica.feed(version, images)
        feed(one, version, images)
    exchange_all(replicas)

    assert_same_divergence([replica.state for replica in replicas], one.states()["street"])
    assert not np.isnan(one.states()["street"].divergence.classes)


def test_only_the_last_images_of_each_replica_are_in_the_window(publications, version, rng):
    replicas = [Replica(publications) for _ in range(2)]
    one = DriftMonitor(DriftPolicy(2 * WINDOW, PATIENCE))
    for replica in replicas:
        images = draw(rng, 50)
        replica.feed(version, images)
        feed(one, version, images[-WINDOW:])
    exchange_all(replicas)

    assert_same_divergence([replica.state for replica in replicas], one.states()["street"])


def test_lone_replica_has_the_same_states_as_without_exchange(publications, version, rng):
    images = [*draw(rng, 40), *draw(rng, 40, alpha=2.0), *draw(rng, 40)]
    alone, replica = DriftMonitor(DriftPolicy(WINDOW, PATIENCE)), Replica(publications)
    for mask, confidence in images:
        expected = alone.observe("street", version, Prediction(mask, confidence))
        state = replica.monitor.observe("street", version, Prediction(mask, confidence))
        assert state == expected or np.isnan(state.divergence.classes)
        replica.exchange()
        assert replica.state == state or np.isnan(state.divergence.classes)


def test_all_replicas_become_stale_and_recover_with_the_answers_of_all(publications, version, rng):
    replicas = [Replica(publications) for _ in range(2)]

    def answer_all(rounds: int, alpha: float) -> list[bool]:
        for _ in range(rounds):
            for replica in replicas:
                replica.feed(version, draw(rng, 2, alpha))
            exchange_all(replicas)
        return [replica.monitor.is_stale("street", "a") for replica in replicas]

    assert answer_all(10, alpha=8.0) == [False, False]
    assert answer_all(1, alpha=2.0) == [False, False]  # patience
    assert answer_all(12, alpha=2.0) == [True, True]
    assert answer_all(16, alpha=8.0) == [False, False]


def test_replica_without_answers_of_its_own_follows_the_others(publications, version, rng):
    busy, idle = replicas = [Replica(publications) for _ in range(2)]
    idle.feed(version, draw(rng, 1))
    for _ in range(12):
        busy.feed(version, draw(rng, 4, alpha=2.0))
        exchange_all(replicas)

    assert busy.state.stale
    assert idle.state.stale


def test_answers_before_a_replica_was_known_do_not_count_as_consecutive(publications, version, rng):
    early, late = Replica(publications), Replica(publications)
    early.feed(version, draw(rng, 100, alpha=2.0))
    early.exchange()
    late.exchange()
    late.feed(version, draw(rng, 1, alpha=2.0))

    assert early.state.stale
    assert not late.state.stale


def test_windows_of_other_calibrators_and_models_are_not_merged(publications, version, rng):
    reference = version.reference
    replicas = [Replica(publications) for _ in range(3)]
    own, others = replicas[0], replicas[1:]
    manifest = version.manifest.model_copy(update={"model_sha256": "1" * 64})
    other_model = StoredCalibrator(manifest, version.calibrator, reference)
    own.feed(version, draw(rng, WINDOW))
    before = own.state
    others[0].feed(stored(reference, "b"), draw(rng, WINDOW, alpha=1.0))
    others[1].feed(other_model, draw(rng, WINDOW, alpha=1.0))
    exchange_all(replicas)

    assert own.state == before


def test_window_of_a_replica_that_has_ended_drops_out_and_is_removed(
    publications, version, rng, monkeypatch
):
    running, ended = replicas = [Replica(publications) for _ in range(2)]
    running.feed(version, draw(rng, WINDOW // 2))
    ended.feed(version, draw(rng, WINDOW // 2))
    exchange_all(replicas)
    assert not np.isnan(running.state.divergence.confidence)

    monkeypatch.setattr(drift_exchange, "MAX_AGE_S", 0.2)
    time.sleep(0.3)
    running.exchange()
    assert np.isnan(running.state.divergence.confidence)  # half of a window
    assert len(publications.published_at()) == 2
    monkeypatch.setattr(drift_exchange, "REMOVE_S", 0.2)
    running.exchange()
    assert len(publications.published_at()) == 1


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b'{"windows": [{"model": "street"}]}', b'{"windows": [{"histograms": [NaN]}]}'],
)
def test_document_that_is_no_window_is_ignored(publications, version, rng, document):
    replica = Replica(publications)
    replica.feed(version, draw(rng, WINDOW))
    before = replica.state
    publications.put("f" * 16, document)
    replica.exchange()

    assert replica.state == before


def test_histograms_of_another_length_are_ignored(publications, version, rng):
    replica = Replica(publications)
    replica.feed(version, draw(rng, WINDOW))
    (window,) = replica.monitor.published()
    assert len(window.histograms) == 64 + 3
    assert sum(window.histograms) == pytest.approx(2 * WINDOW)
    before = replica.state
    short = window.model_copy(update={"histograms": (1.0, 2.0)})
    publications.put("f" * 16, DriftWindows(windows=(short,)).model_dump_json().encode())
    replica.exchange()

    assert replica.state == before


def test_windows_are_withdrawn_at_the_end(publications, version, rng):
    monitor = DriftMonitor(DriftPolicy(WINDOW, PATIENCE))
    feed(monitor, version, draw(rng, 1))

    async def run() -> None:
        async with DriftExchange(monitor, publications).running():
            await asyncio.to_thread(
                wait_for, lambda: len(publications.published_at()) == 1, "a publication"
            )

    asyncio.run(run())
    assert publications.published_at() == {}


def test_others_are_kept_for_a_while_where_the_store_is_down(version, rng, monkeypatch):
    monkeypatch.setattr(drift_exchange, "PUBLISH_S", 0.01)
    objects = Objects(memory_store())
    other = Replica(ObjectPublications(objects, "drift"))
    other.feed(version, draw(rng, WINDOW // 2))
    other.exchange()
    monitor = DriftMonitor(DriftPolicy(WINDOW, PATIENCE))
    feed(monitor, version, draw(rng, WINDOW // 2))

    def is_full() -> bool:
        return not np.isnan(monitor.states()["street"].divergence.classes)

    failures = []

    def fail(*_arguments: object) -> None:
        failures.append(True)
        raise UnavailableError("expected an answer, got none")

    async def run() -> None:
        async with DriftExchange(monitor, ObjectPublications(objects, "drift")).running():
            await asyncio.to_thread(wait_for, is_full, "the window to be full")
            monkeypatch.setattr(objects, "_put", fail)
            await asyncio.to_thread(wait_for, lambda: len(failures) > 3, "attempts")
            assert is_full()
            monkeypatch.setattr(drift_exchange, "MAX_AGE_S", 0.0)
            await asyncio.to_thread(wait_for, lambda: not is_full(), "the others to drop out")

    asyncio.run(run())
