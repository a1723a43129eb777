"""A fit over shards equals the fit of one process; what does not belong together is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli.fits import Source, fit_locally
from app.cli.image_files import Folders
from app.cli.shards import compute_shard, fit_shards
from app.datasets.shards import RECORD, ShardNumber, find_shards, open_shards
from app.errors import ArgumentError, InputError
from app.inference.model_card import read_model_folder
from app.schemas.fit import FitOptions
from tests.factories.models import write_onnx_model
from tests.factories.validation_data import npy

IMAGES, SHARDS = 26, 8


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Write random images of several sizes with noisy labels, in groups of two."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(IMAGES):
        size = 14 + index % 5, 16 + index % 3
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        truth = image.argmax(2).astype(np.uint8)
        noisy = rng.random(size) < 0.3
        truth[noisy] = rng.integers(0, 3, noisy.sum())
        truth[0] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{index:02}.png")
        Image.fromarray(truth).save(tmp_path / "labels" / f"{index:02}.png")
    (tmp_path / "groups.npy").write_bytes(npy(np.arange(IMAGES) // 2))
    folders = Folders(tmp_path / "images", tmp_path / "labels")
    return Source({"group_index": tmp_path / "groups.npy"}, None, folders)


@pytest.fixture
def compute(source, make_settings, models_dir, tmp_path):
    """Return a function that computes a shard; its options are those of the fit."""

    def call(number: int, out: str = "shards", **options: object) -> Path:
        return compute_shard(
            ShardNumber(number, SHARDS),
            source,
            FitOptions.parse(options),
            read_model_folder(models_dir / "tiny"),
            make_settings(),
            tmp_path / out,
            lambda *_: None,
        )

    return call


def without_times(report: dict[str, object]) -> dict[str, object]:
    """Return a report without the durations of its fits."""
    candidates = [{**one, "fit_seconds": 0} for one in report["candidates"]]  # type: ignore[attr-defined]
    return {**report, "candidates": candidates}


@pytest.mark.parametrize("method", ["auto", "contextual"])
def test_fit_of_eight_shards_equals_that_of_one_process(
    method, source, compute, make_settings, models_dir, tmp_path
):
    options = FitOptions(method=method, seed=1, allow_label_changes=True)
    shards = [compute(number, **options.model_dump()) for number in range(SHARDS, 0, -1)]
    again = compute(3, out="computed-twice", **options.model_dump())
    whole_settings = make_settings(artifacts_dir=tmp_path / "whole")
    folder = read_model_folder(models_dir / "tiny")
    whole = fit_locally(source, options, folder, whole_settings, lambda *_: None)
    merged = fit_shards([*shards, again], make_settings(), lambda *_: None)

    # The hashes of the files say that parameters and drift reference have the same bits.
    times = {"id", "fitted_at", "files"}
    assert merged.manifest.model_dump(exclude=times) == whole.manifest.model_dump(exclude=times)
    for name in ("calibrator.safetensors", "reference.safetensors"):
        assert merged.manifest.files[name] == whole.manifest.files[name]
    assert merged.activated == whole.activated
    assert without_times(merged.report) == without_times(whole.report)
    assert merged.report["image_hashes"] is not None


def test_shards_divide_the_images_in_order(compute):
    folders = [compute(number) for number in range(1, SHARDS + 1)]
    data = open_shards(folders, 3)
    sizes = [len(list(folder.glob("logits*.npy"))) for folder in folders]

    assert sum(sizes) == len(data) == IMAGES
    assert {3, 4} == set(sizes)
    assert list(data.groups) == [index // 2 for index in range(IMAGES)]


def test_missing_shards_are_named(compute):
    folders = [compute(number) for number in (1, 2, 4, 5, 6, 8)]
    with pytest.raises(ArgumentError, match=r"expected the shards 1 to 8, got none .* 3, 7$"):
        open_shards(folders, 3)


def test_shard_of_another_fit_is_refused(compute):
    folders = [compute(1, seed=0), compute(2, seed=1)]
    with pytest.raises(ArgumentError, match="another options in shard-2-of-8"):
        open_shards(folders, 3)


def test_shard_computed_twice_from_changed_labels_is_refused(compute, source, tmp_path):
    first = compute(1)
    Image.fromarray(np.zeros((14, 16), np.uint8)).save(tmp_path / "labels/00.png")
    second = compute(1, out="later")
    with pytest.raises(ArgumentError, match="expected the same images in both shards 1/8"):
        open_shards([first, second], 3)
    with pytest.raises(ArgumentError, match=r"expected no folder .* or this shard of the same"):
        compute(1)


def test_finished_shard_is_kept(compute):
    folder = compute(1)
    before = (folder / RECORD).stat().st_mtime_ns
    assert compute(1) == folder
    assert (folder / RECORD).stat().st_mtime_ns == before


def test_interrupted_shard_leaves_no_folder(compute, source, tmp_path):
    damaged = tmp_path / "images/02.png"
    content = damaged.read_bytes()
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError):
        compute(1)
    assert list((tmp_path / "shards").iterdir()) == []

    damaged.write_bytes(content)
    assert find_shards([tmp_path / "shards", compute(1)]) == [compute(1)] * 2


def test_damaged_array_is_refused(compute):
    folders = [compute(number) for number in range(1, SHARDS + 1)]
    (folders[2] / "logits1.npy").write_bytes(b"\x93NUMPY")
    data = open_shards(folders, 3)
    with pytest.raises(ArgumentError, match=r"expected an array in shard-3-of-8/logits1\.npy"):
        data[7]


def test_shards_of_another_model_are_refused(compute, make_settings, models_dir):
    folder = compute(1)
    shutil.rmtree(models_dir / "tiny")
    write_onnx_model(models_dir, "tiny", stride=4)
    with pytest.raises(ArgumentError, match="expected the model tiny with the hash"):
        fit_shards([folder], make_settings(), lambda *_: None)


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "-1/8", "1/8/2"])
def test_shard_numbers_are_checked(text):
    with pytest.raises(ArgumentError, match="expected a shard as 1/8 to 8/8"):
        ShardNumber.parse(text)


def test_more_shards_than_images_are_refused():
    with pytest.raises(ArgumentError, match="expected at most 3 shards of 3 images, got 4/4"):
        ShardNumber(4, 4).block(3)
