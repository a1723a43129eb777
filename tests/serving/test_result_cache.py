import threading

import numpy as np
import pytest

from app.calibration.predictions import Prediction
from app.errors import NotFoundError
from app.serving.result_cache import Result, ResultCache


class Clock:
    """A clock in seconds that advances only when set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def result(upload: bytes = b"", side: int = 2) -> Result:
    """Build a result of `5 * side * side` bytes plus the upload."""
    mask, confidence = np.zeros((side, side), np.uint8), np.ones((side, side), np.float32)
    return Result("tiny", upload, Prediction(mask, confidence), [(0, 0, 0)])


def test_result_counts_its_bytes():
    assert result(b"123", side=2).nbytes == 3 + 4 + 16


def test_result_is_found_by_its_id(clock):
    cache = ResultCache(10, 1000, clock)
    first, second = result(), result()
    names = cache.put(first), cache.put(second)
    assert cache.get(names[0]) is first
    assert cache.get(names[1]) is second


def test_ids_are_long_and_distinct(clock):
    cache = ResultCache(10, 1_000_000, clock)
    names = {cache.put(result()) for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {24}


def test_unknown_id_is_not_found(clock):
    with pytest.raises(NotFoundError, match="got one that is unknown or expired"):
        ResultCache(10, 1000, clock).get("f" * 24)


def test_result_expires(clock):
    cache = ResultCache(10, 1000, clock)
    name = cache.put(result())
    clock.now = 109.9
    cache.get(name)
    clock.now = 110.0
    with pytest.raises(NotFoundError):
        cache.get(name)


def test_reading_does_not_extend_expiry(clock):
    cache = ResultCache(10, 1000, clock)
    name = cache.put(result())
    clock.now = 105.0
    cache.get(name)
    later = cache.put(result())
    clock.now = 111.0
    cache.get(later)
    with pytest.raises(NotFoundError):
        cache.get(name)


def test_oldest_results_are_evicted_first(clock):
    cache = ResultCache(10, 50, clock)  # two of 20 bytes, and 10 to spare
    first, second, third = (cache.put(result()) for _ in range(3))
    with pytest.raises(NotFoundError):
        cache.get(first)
    cache.get(second)
    cache.get(third)


def test_budget_can_be_filled_to_the_last_byte(clock):
    cache = ResultCache(10, 40, clock)
    names = [cache.put(result()) for _ in range(2)]
    for name in names:
        cache.get(name)


def test_upload_counts_towards_the_budget(clock):
    cache = ResultCache(10, 40, clock)
    first = cache.put(result())
    cache.put(result(b"x"))
    with pytest.raises(NotFoundError):
        cache.get(first)


def test_result_above_the_budget_gets_an_id_but_is_not_stored(clock):
    cache = ResultCache(10, 19, clock)
    with pytest.raises(NotFoundError):
        cache.get(cache.put(result()))


@pytest.mark.parametrize(("ttl_s", "max_bytes"), [(0, 1000), (10, 0)])
def test_nothing_is_stored_with_zero_time_or_budget(clock, ttl_s, max_bytes):
    cache = ResultCache(ttl_s, max_bytes, clock)
    with pytest.raises(NotFoundError):
        cache.get(cache.put(result()))


def test_expired_results_free_their_bytes(clock):
    cache = ResultCache(10, 40, clock)
    cache.put(result())
    cache.put(result())
    clock.now = 110.0
    names = [cache.put(result()) for _ in range(2)]
    for name in names:
        cache.get(name)


def test_cache_is_thread_safe(clock):
    cache = ResultCache(10, 200, clock)
    kept = []

    def work() -> None:
        for _ in range(200):
            name = cache.put(result())
            try:
                kept.append(cache.get(name) is not None)
            except NotFoundError:
                kept.append(False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 800
    assert any(kept)
