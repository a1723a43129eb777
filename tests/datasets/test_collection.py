"""Labelled images collected on disk, within a limit of bytes."""

import json

import numpy as np
import pytest
from PIL import Image

from app.datasets.collection import Collection
from app.datasets.images import find_pairs, read_labels
from tests.factories.service import BLUE, RED, encoded, solid

LABELS = np.zeros((8, 12), np.uint8)


@pytest.fixture
def collection(tmp_path):
    return Collection(tmp_path / "collected", 10**6)


def test_images_count_as_new_until_they_are_fitted(collection):
    collection.add("a", encoded(solid(RED)), LABELS)
    collection.add("b", encoded(solid(RED), "JPEG"), LABELS)
    assert collection.new() == ["a", "b"]
    collection.mark_fitted(["a", "b"])
    assert collection.new() == []
    collection.add("a", encoded(solid(RED)), LABELS)  # the same again
    assert collection.new() == []
    collection.add("a", encoded(solid(RED)), LABELS + 1)
    assert collection.new() == ["a"]


def test_an_image_replaces_the_one_of_its_key(collection):
    collection.add("a", encoded(solid(RED)), LABELS)
    collection.add("ab", encoded(solid(RED)), LABELS)
    collection.add("a", encoded(solid(BLUE), "JPEG"), LABELS + 2)
    pairs = collection.pairs()
    assert sorted(pairs) == ["a", "ab"]
    assert pairs["a"].image.name == "a.jpg"
    assert (np.asarray(Image.open(pairs["a"].labels)) == 2).all()


def test_oldest_images_are_deleted_above_the_limit(tmp_path):
    image = encoded(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))
    collection = Collection(tmp_path / "collected", 3 * len(image))
    for key in "abcd":
        collection.add(key, image, LABELS)
    assert list(collection.pairs()) == ["c", "d"]
    assert collection.new() == ["c", "d"]


def test_an_upload_has_the_images_in_order(collection, tmp_path):
    for key in ("b", "a"):
        collection.add(key, encoded(solid(RED)), LABELS)
    (tmp_path / "upload").mkdir()
    assert collection.copy_to(tmp_path / "upload") == 2
    pairs = find_pairs(tmp_path / "upload/image_files", tmp_path / "upload/label_files")
    assert [pair.image.name for pair in pairs] == ["000000.png", "000001.png"]
    assert json.loads((tmp_path / "upload/image_names.json").read_text()) == ["a", "b"]
    collection.remove("a")
    assert (read_labels(pairs[0].labels, 10**6) == 0).all()


def test_sixteen_bit_labels_are_kept(collection):
    collection.add("a", encoded(solid(RED)), np.full((8, 12), 65535, np.uint16))
    (pair,) = collection.pairs().values()
    assert (np.asarray(Image.open(pair.labels)) == 65535).all()


@pytest.mark.parametrize("key", ["", "../a", "a/b", "A", "a.b", "*"])
def test_keys_are_no_paths(collection, key):
    with pytest.raises(ValueError, match="expected a key"):
        collection.add(key, encoded(solid(RED)), LABELS)
