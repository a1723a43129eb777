"""`segcal map-labels` on files."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_main import Run, run

__all__ = ["run"]  # the fixture


@pytest.fixture
def label_ids(tmp_path):
    """Write two label maps of Cityscapes: road, rider and unlabelled; cars alone."""
    folder = tmp_path / "labelIds"
    folder.mkdir()
    Image.fromarray(np.array([[7, 25], [0, 0]], np.uint8)).save(folder / "a.png")
    Image.fromarray(np.full((2, 2), 26, np.uint8)).save(folder / "b.png")
    return folder


def test_label_maps_become_class_ids(run: Run, label_ids, tmp_path):
    out = tmp_path / "ids"
    done = run("map-labels", label_ids, "--taxonomy", "cityscapes", "--out", out)
    assert done.code == 0, done.err
    assert "2 label maps" in done.err
    assert "25.0% of the pixels are void" in done.err
    with Image.open(out / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 12], [255, 255]]
        assert image.convert("RGB").getpixel((0, 0)) == (128, 64, 128)
    with Image.open(out / "b.png") as image:
        assert np.asarray(image).tolist() == [[13, 13], [13, 13]]


def test_mapping_may_be_named(run: Run, label_ids, tmp_path):
    options = ("--taxonomy", "acdc", "--mapping", "labelIds", "--out", tmp_path / "ids")
    assert run("map-labels", label_ids, *options).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--taxonomy", "kitti"), "--taxonomy: expected one of"),
        (("--taxonomy", "ade20k"), "--taxonomy: expected one with label mappings, got ade20k"),
        (("--taxonomy", "cityscapes", "--mapping", "rgb"), "expected one of ['labelIds'], got rgb"),
    ],
)
def test_unknown_taxonomy_or_mapping_is_rejected(run: Run, label_ids, tmp_path, options, message):
    done = run("map-labels", label_ids, *options, "--out", tmp_path / "ids")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "ids").exists()


def test_label_maps_are_not_replaced_in_place(run: Run, label_ids, tmp_path):
    options = ("--taxonomy", "cityscapes", "--out")
    done = run("map-labels", label_ids, *options, label_ids)
    assert done.code == 2
    assert "expected another folder" in done.err
    (tmp_path / "empty").mkdir()
    assert "got none" in run("map-labels", tmp_path / "empty", *options, tmp_path / "ids").err
