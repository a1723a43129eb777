"""Results in files, which several processes share."""

import time
from pathlib import Path

import numpy as np
import pytest

from app.calibration.predictions import Mask, Prediction
from app.errors import NotFoundError
from app.serving.result_cache import Result
from app.serving.result_files import ResultFiles


def result(seed: int = 0, *, wide: bool = False) -> Result:
    """Build a result of 3x4 pixels: 60 bytes, or 72 if `wide`, and 3 of the upload."""
    random = np.random.default_rng(seed)
    mask: Mask = random.integers(0, 2, (3, 4)).astype(np.uint8)
    if wide:
        mask = mask.astype(np.uint16)
    confidence = random.random((3, 4), np.float32)
    return Result("tiny", b"abc", Prediction(mask, confidence), [(1, 2, 3), (255, 0, 4)])


class Clock:
    """A clock in seconds since the epoch that is shifted by hand."""

    shift = 0.0

    def __call__(self) -> float:
        return time.time() + self.shift


@pytest.mark.parametrize("wide", [False, True], ids=["uint8", "uint16"])
def test_another_process_reads_a_result(tmp_path: Path, *, wide: bool):
    kept = result(wide=wide)
    name = ResultFiles(tmp_path, 10, 1000).put(kept)
    read = ResultFiles(tmp_path, 10, 1000).get(name)

    assert (read.model, read.upload, read.palette) == (kept.model, kept.upload, kept.palette)
    assert read.prediction.mask.dtype == kept.prediction.mask.dtype
    np.testing.assert_array_equal(read.prediction.mask, kept.prediction.mask)
    np.testing.assert_array_equal(read.prediction.confidence, kept.prediction.confidence)


def test_budget_removes_the_oldest_of_its_own(tmp_path: Path):
    first, second = ResultFiles(tmp_path, 10, 130), ResultFiles(tmp_path, 10, 130)
    others = second.put(result())
    names = [first.put(result(seed)) for seed in range(3)]

    with pytest.raises(NotFoundError):
        first.get(names[0])
    for name in (names[1], names[2], others):
        first.get(name)
    assert first.nbytes == 126
    assert len(list(tmp_path.iterdir())) == 3


def test_result_above_the_budget_is_not_kept(tmp_path: Path):
    files = ResultFiles(tmp_path, 10, 62)
    name = files.put(result())
    with pytest.raises(NotFoundError, match="unknown or expired"):
        files.get(name)
    assert not list(tmp_path.iterdir())


def test_expired_results_are_removed_also_those_of_an_ended_process(tmp_path: Path):
    clock = Clock()
    ended, running = ResultFiles(tmp_path, 10, 1000), ResultFiles(tmp_path, 10, 1000, clock)
    names = ended.put(result()), running.put(result())
    clock.shift = 10.5
    for name in names:
        with pytest.raises(NotFoundError):
            running.get(name)
    fresh = running.put(result())

    # The fresh file's time is the system's, which this clock is ahead of.
    assert [path.stem for path in tmp_path.iterdir()] == [fresh]
    assert running.nbytes == 63


@pytest.mark.parametrize("name", ["f" * 24, "../secret", "", "F" * 24, "a" * 23 + "/"])
def test_unknown_id_is_not_found(tmp_path: Path, name: str):
    folder = tmp_path / "results"
    files = ResultFiles(folder, 10, 1000)
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="unknown or expired"):
        files.get(name)


def test_damaged_file_is_not_found(tmp_path: Path):
    files = ResultFiles(tmp_path, 10, 1000)
    name = files.put(result())
    (tmp_path / f"{name}.safetensors").write_bytes(b"damaged")
    with pytest.raises(NotFoundError):
        files.get(name)


def test_result_that_cannot_be_written_raises_nothing(tmp_path: Path):
    files = ResultFiles(tmp_path / "results", 10, 1000)
    (tmp_path / "results").rmdir()
    name = files.put(result())
    with pytest.raises(NotFoundError):
        files.get(name)
