"""Decoding in child processes: the same pixels, a time limit, and no harm from a child's end."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.deadline import Deadline
from app.errors import TooLargeError, UnavailableError, UndecodableError
from app.imaging import DecoderPool
from app.imaging.decode import decode_image
from app.imaging.decoder_pool import SMALL_TIFF_BYTES
from tests.factories.jobs import wait_for
from tests.imaging.test_decode import encoded

LIMIT = 50_000_000
NOISE = np.random.default_rng(0).integers(0, 256, (700, 800, 3), dtype=np.uint8)
LARGE = encoded(NOISE, "TIFF")  # above SMALL_TIFF_BYTES
# Seconds of a child's time: 49 megapixels in 34 bytes.
SLOW = encoded(Image.new("RGB", (7000, 7000)), "WEBP", lossless=True)


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    opened = DecoderPool()
    yield opened
    opened.close()


def children() -> set[int]:
    lists = Path("/proc/self/task").glob("*/children")  # of each thread
    return {int(child) for path in lists for child in path.read_text().split()}


def assert_decodes(pool: DecoderPool) -> None:
    assert np.array_equal(pool.decode(LARGE, LIMIT), NOISE)


def test_pixels_are_those_of_the_calling_thread(pool: DecoderPool):
    assert len(LARGE) > SMALL_TIFF_BYTES
    assert_decodes(pool)
    sparse = encoded(Image.new("RGB", (5000, 4000), (1, 2, 3)), "PNG")
    assert np.array_equal(pool.decode(sparse, LIMIT), decode_image(sparse, LIMIT))


def test_small_image_starts_no_process_and_a_large_one_starts_one(pool: DecoderPool):
    before = children()
    assert pool.decode(encoded(NOISE[:9], "PNG"), LIMIT).shape == (9, 800, 3)
    assert children() == before
    for _ in range(3):
        assert_decodes(pool)
    assert len(children() - before) == 1


def test_errors_are_those_of_the_calling_thread_and_keep_the_process(pool: DecoderPool):
    assert_decodes(pool)
    before = children()
    with pytest.raises(TooLargeError, match="expected at most 9 pixels, got 800x700"):
        pool.decode(LARGE, 9)
    with pytest.raises(UndecodableError, match="cut off or damaged"):
        pool.decode(LARGE[: SMALL_TIFF_BYTES + 1], LIMIT)
    assert_decodes(pool)
    assert children() == before


def test_image_beyond_the_time_limit_ends_its_process_only():
    pool = DecoderPool(limit_s=0.1)
    with pytest.raises(TooLargeError, match=r"decoded within 0\.1 s, got one that takes longer"):
        pool.decode(SLOW, LIMIT)
    pool = DecoderPool()
    assert_decodes(pool)
    pool.close()


def test_deadline_ends_a_decoder(pool: DecoderPool):
    deadline = Deadline()
    threading.Timer(0.1, deadline.expire, ["expected a response, got none in time"]).start()
    with pytest.raises(UnavailableError, match="got none in time"):
        pool.decode(SLOW, LIMIT, deadline)
    assert_decodes(pool)


def test_killed_process_is_replaced(pool: DecoderPool):
    before = children()
    assert_decodes(pool)
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{child}/stat").read_text().split()[2] == "Z", "its end")
    assert_decodes(pool)


def test_decoder_that_ends_is_an_error_of_the_image(pool: DecoderPool):
    before = children()
    failures: list[str] = []

    def decode() -> None:
        try:
            pool.decode(SLOW, LIMIT)
        except UndecodableError as error:
            failures.append(str(error))

    thread = threading.Thread(target=decode)
    thread.start()
    wait_for(lambda: len(children() - before) == 1, "the process")
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    thread.join()
    assert failures == ["expected an image, got one that ends its decoder"]
    assert_decodes(pool)
