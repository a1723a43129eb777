"""Results in a bucket, which all replicas read; `make fleet` has two servers over S3."""

import asyncio
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

from app.errors import NotFoundError, UnavailableError
from app.serving import result_objects
from app.serving.result_objects import ResultObjects
from app.storage.objects import Objects
from tests.factories.jobs import wait_for
from tests.serving.test_result_files import Clock, result
from tests.storage.buckets import memory_store


class Bucket(Objects):
    """Objects of a store that can be down, or wait before it writes.

    `reads` counts those of results, `puts` lists the ids of the results that were written.
    """

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.down, self.reads = False, 0
        self.puts: list[str] = []
        self.may_write = threading.Event()
        self.may_write.set()

    def _fail_if_down(self) -> None:
        if self.down:
            raise UnavailableError("expected an answer, got none")

    def read(self, path: str, *arguments: Any) -> Any:
        self.reads += path != result_objects.PROBE
        self._fail_if_down()
        return super().read(path, *arguments)

    def delete(self, path: str) -> None:
        self._fail_if_down()
        super().delete(path)

    def _put(self, path: str, *arguments: Any) -> bool:
        self.may_write.wait()
        self._fail_if_down()
        self.puts.append(path.partition(".")[0])
        return super()._put(path, *arguments)


@pytest.fixture
def store() -> Any:
    return memory_store()


def written(results: ResultObjects, **options: Any) -> str:
    """Put a result and wait until it is written."""
    name = results.put(result(**options))
    asyncio.run(results.wait_for(name))
    return name


def is_written(store: Any, name: str) -> bool:
    """Return whether the bucket has a result."""
    return f"{name}.safetensors" in Objects(store).names("")


def is_found(results: ResultObjects, name: str) -> bool:
    """Return whether a result is read; false while the store counts as down."""
    try:
        return results.get(name).upload == b"abc"
    except UnavailableError:
        return False


def assert_missing(results: ResultObjects, *names: str) -> None:
    for name in names:
        with pytest.raises(NotFoundError, match="unknown or expired"):
            results.get(name)


@pytest.mark.parametrize("wide", [False, True], ids=["uint8", "uint16"])
def test_another_replica_reads_a_result(store, *, wide: bool):
    name = written(ResultObjects(Objects(store), 10, 1000), wide=wide)
    read, kept = ResultObjects(Objects(store), 10, 1000).get(name), result(wide=wide)

    assert (read.model, read.upload, read.palette) == (kept.model, kept.upload, kept.palette)
    assert read.prediction.mask.dtype == kept.prediction.mask.dtype
    np.testing.assert_array_equal(read.prediction.mask, kept.prediction.mask)
    np.testing.assert_array_equal(read.prediction.confidence, kept.prediction.confidence)


def test_own_results_are_read_from_memory(store):
    bucket = Bucket(store)
    results = ResultObjects(bucket, 10, 1000)
    name = written(results)

    assert results.get(name).upload == b"abc"
    assert (bucket.reads, results.nbytes) == (0, 63)


def test_budget_of_a_replica_keeps_its_latest_results_in_the_bucket(store):
    objects = Objects(store)
    first, second = ResultObjects(objects, 10, 130), ResultObjects(objects, 10, 130)
    others = written(second)
    names = [written(first, seed=seed) for seed in range(3)]
    wait_for(lambda: len(objects.names("")) == 3, "the oldest object to be deleted")

    for replica in (first, second, ResultObjects(objects, 10, 130)):
        assert_missing(replica, names[0])
        for name in (names[1], names[2], others):
            replica.get(name)


@pytest.mark.parametrize("limits", [(10, 62), (0, 1000)], ids=["above the budget", "no time"])
def test_result_that_is_not_kept_is_not_written(store, limits):
    results = ResultObjects(Objects(store), *limits)

    assert_missing(results, written(results))
    assert Objects(store).names("") == []


def test_expired_results_are_removed_also_those_of_an_ended_replica(store):
    clock, objects = Clock(), Objects(store)
    names = [
        written(ResultObjects(objects, 10, 1000)),
        written(running := ResultObjects(objects, 10, 1000, clock)),
    ]
    clock.shift = 10.5
    assert_missing(running, *names)
    written(running)

    # The fresh object's time is the store's, which this clock is ahead of.
    wait_for(lambda: objects.names("") == [], "all objects to be removed, the fresh one too")


def test_object_of_an_unknown_id_is_not_read(store):
    bucket = Bucket(store)
    Objects(store).create("secret.safetensors", b"x")
    results = ResultObjects(bucket, 10, 1000)

    assert_missing(results, "../secret", "secret", "", "F" * 24, "a" * 23 + "/", "a" * 25)
    assert bucket.reads == 0
    assert_missing(results, "f" * 24)
    assert bucket.reads == 1


@pytest.mark.parametrize("data", [b"damaged", b"\x02" + bytes(7) + b"{}"], ids=["no file", "empty"])
def test_damaged_object_is_not_found(store, data):
    Objects(store).create(f"{'a' * 24}.safetensors", data)

    assert_missing(ResultObjects(Objects(store), 10, 1000), "a" * 24)


def test_store_that_is_down_keeps_own_links_alive_and_is_written_to_later(store, monkeypatch):
    monkeypatch.setattr(result_objects, "RETRY_S", 0.05)
    bucket, reader = Bucket(store), Bucket(store)
    own, other = ResultObjects(bucket, 10, 1000), ResultObjects(reader, 10, 1000)
    bucket.down = reader.down = True
    names = [written(own, seed=seed) for seed in range(3)]

    for name in names:
        own.get(name)
        with pytest.raises(UnavailableError):
            other.get(name)
    assert reader.reads == 1  # further ones are answered at once

    bucket.down = reader.down = False
    for name in names:
        wait_for(partial(is_written, store, name), "all to be written")
        wait_for(partial(is_found, other, name), "the reader to try the store again")


def test_response_waits_a_moment_for_a_slow_store_and_later_ones_do_not(store, monkeypatch):
    monkeypatch.setattr(result_objects, "WAIT_S", 0.05)
    monkeypatch.setattr(result_objects, "RETRY_S", 0.05)
    bucket = Bucket(store)
    bucket.may_write.clear()
    results = ResultObjects(bucket, 10, 1000)
    names = [written(results)]
    bucket.down = True  # the attempts to read fail as well

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("expected no wait")

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "wait", fail)
        names += [written(results, seed=seed) for seed in range(2)]
    assert not any(is_written(store, name) for name in names)
    bucket.down = False
    bucket.may_write.set()
    for name in names:
        wait_for(partial(is_written, store, name), "all to be written")


def test_result_that_expires_while_the_store_is_down_is_never_written(store, monkeypatch):
    monkeypatch.setattr(result_objects, "RETRY_S", 0.05)
    clock, bucket = Clock(), Bucket(store)
    results = ResultObjects(bucket, 10, 1000, clock)
    bucket.down = True
    expired = written(results)
    clock.shift = 10.5
    last = results.put(result())
    bucket.down = False
    wait_for(lambda: last in bucket.puts, "the last result to be written")

    assert expired not in bucket.puts
