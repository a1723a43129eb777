from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from app.calibration.dataset import IGNORE
from app.calibration.methods.temperature import Temperature
from app.calibration.predictions import predict
from app.datasets.images import Pair, checked, find_pairs, read_labels
from app.datasets.stored_logits import CachedLogits, to_grid
from app.errors import ArgumentError, TooLargeError, UndecodableError
from app.inference.model_card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from app.inference.preprocess import Geometry
from tests.factories.models import expected_logits, write_onnx_model
from tests.factories.predictions import postprocessed

LIMIT = 10_000
LABELS = np.array([[0, 1, 2, 255], [2, 1, 0, 0]], np.uint8)


@pytest.fixture
def folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    return images, labels


@pytest.fixture
def predictor(tmp_path):
    return open_predictor(read_model_folder(write_onnx_model(tmp_path, "tiny")), "cpu", 1)


def saved(values: Image.Image | NDArray[Any], path: Path) -> Path:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path)
    return path


# Pairs of image and label map


def test_pairs_match_by_stem_with_any_ending(folders):
    images, labels = folders
    for path in (images / "b.PNG", images / "a.jpg", labels / "a.png", labels / "b.tif"):
        path.touch()
    (images / "notes.txt").touch()
    assert find_pairs(images, labels) == [
        Pair(images / "a.jpg", labels / "a.png"),
        Pair(images / "b.PNG", labels / "b.tif"),
    ]


def test_image_without_labels_is_named(folders):
    images, labels = folders
    for path in (images / "a.png", images / "b.png", labels / "a.png"):
        path.touch()
    with pytest.raises(ArgumentError, match=r"2 images, 1 label maps, and 1 .* as \['b'\]"):
        find_pairs(images, labels)


def test_empty_folders_are_rejected(folders):
    with pytest.raises(ArgumentError, match="got 0 images, 0 label maps"):
        find_pairs(*folders)


def test_two_files_of_one_stem_are_rejected(folders):
    images, labels = folders
    for path in (images / "a.jpg", images / "a.png", labels / "a.png"):
        path.touch()
    with pytest.raises(ArgumentError, match=r"one file for each stem, got a\.jpg and a\.png"):
        find_pairs(images, labels)


def test_missing_folder_is_rejected(folders, tmp_path):
    with pytest.raises(ArgumentError, match="expected a folder, got"):
        find_pairs(folders[0], tmp_path / "gone")


# Label maps


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_grey_labels_are_read_as_ids(tmp_path, ending):
    labels = read_labels(saved(LABELS, tmp_path / f"labels.{ending}"), LIMIT)
    assert labels.dtype == np.int32
    assert np.array_equal(labels, LABELS)


def test_indexed_labels_are_read_as_ids_not_colors(tmp_path):
    image = Image.fromarray(LABELS)
    image.putpalette(list(range(256)) * 3)
    assert np.array_equal(read_labels(saved(image, tmp_path / "labels.png"), LIMIT), LABELS)


def test_bilevel_labels_are_zero_and_one(tmp_path):
    path = saved(LABELS == 1, tmp_path / "labels.png")
    assert np.array_equal(read_labels(path, LIMIT), LABELS == 1)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16B", ">u2")])
def test_sixteen_bit_labels_are_read_as_ids(tmp_path, mode, dtype):
    ids = np.array([[0, 255, 256], [299, 40000, 65535]])
    image = Image.frombytes(mode, (3, 2), ids.astype(dtype).tobytes())
    assert np.array_equal(read_labels(saved(image, tmp_path / "labels.tif"), LIMIT), ids)


def test_colored_labels_are_rejected(tmp_path):
    path = saved(Image.new("RGB", (2, 2)), tmp_path / "labels.png")
    with pytest.raises(ArgumentError, match=r"^labels.png: .* label map, got mode RGB"):
        read_labels(path, LIMIT)


def test_labels_above_the_limit_are_rejected(tmp_path):
    with pytest.raises(TooLargeError, match="expected at most 7 pixels"):
        read_labels(saved(LABELS, tmp_path / "labels.png"), 7)


@pytest.mark.parametrize("keep", [0, 20, 45])
def test_damaged_labels_are_rejected(tmp_path, keep):
    path = saved(LABELS, tmp_path / "labels.png")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArgumentError, match=r"^labels.png: expected a label map, got: "):
        read_labels(path, LIMIT)


def test_void_labels_become_ignore():
    labels = checked(LABELS.astype(np.int32), 3, 255, "a.png")
    assert labels.tolist() == [[0, 1, 2, IGNORE], [2, 1, 0, 0]]


def test_ignore_index_may_be_a_class_id():
    assert checked(np.array([[0, 1]], np.int32), 2, 0, "a.png").tolist() == [[IGNORE, 1]]


def test_labels_that_count_from_1_are_reduced_and_0_is_void():
    labels = np.array([[0, 1, 3, 255]], np.int32)
    reduced = checked(labels, 3, 255, "a.png", reduce_zero=True)
    assert reduced.tolist() == [[IGNORE, 0, 2, IGNORE]]
    with pytest.raises(ArgumentError) as raised:
        checked(labels, 2, 255, "a.png", reduce_zero=True)
    assert str(raised.value) == "a.png: expected labels in 1..2 or 0 or 255 for void, got 1..3"


def test_label_out_of_range_is_rejected():
    with pytest.raises(ArgumentError, match=r"^a.png: expected labels in 0..1 or 255 .*0..2$"):
        checked(LABELS.astype(np.int32), 2, 255, "a.png")


# Labels on the logits' grid


def test_cell_label_is_that_at_its_centre():
    labels = np.arange(16, dtype=np.int32).reshape(4, 4)
    geometry = Geometry((4, 4), (4, 4), (4, 4))
    assert to_grid(labels, geometry, (4, 4)).tolist() == labels.tolist()
    # The centre of a 2x2 cell is the corner of its last pixel.
    assert to_grid(labels, geometry, (2, 2)).tolist() == [[5, 7], [13, 15]]


def test_cells_in_the_padding_are_ignored():
    labels = np.array([[3, 4, 5]], np.int32)
    geometry = Geometry((1, 3), (1, 3), (2, 5))
    assert to_grid(labels, geometry, (2, 5)).tolist() == [[3, 4, 5, IGNORE, IGNORE], [IGNORE] * 5]


def test_resized_labels_are_sampled_from_their_full_size():
    labels = np.array([[0, 0, 1, 1], [2, 2, 0, 0]], np.int32)
    geometry = Geometry((2, 4), (4, 8), (4, 12))
    assert to_grid(labels, geometry, (2, 6)).tolist() == [
        [0, 0, 1, 1, IGNORE, IGNORE],
        [2, 2, 0, 0, IGNORE, IGNORE],
    ]


# A validation set


def test_set_holds_logits_and_labels_of_each_pair(folders, predictor):
    images, labels = folders
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    for index, name in enumerate("ab"):
        saved(pixels[index], images / f"{name}.png")
        saved(np.full((5, 6), index, np.uint8), labels / f"{name}.png")
    steps: list[tuple[str, float]] = []
    dataset = CachedLogits(
        predictor, find_pairs(images, labels), 255, LIMIT, lambda *step: steps.append(step)
    )
    assert len(dataset) == 2
    assert dataset.num_classes == 3
    assert steps == [("logits", 0.0), ("logits", 0.5), ("logits", 1.0)]
    for index in (1, 0):
        padded = np.pad(pixels[index], ((0, 1), (0, 0), (0, 0)), mode="edge")
        planes = padded.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        entry = dataset[index]
        assert np.allclose(entry.logits, expected_logits(planes)[0], atol=1e-5)
        # The padding is half of the lowest cells, whose centres lie on its border.
        assert entry.labels.dtype == torch.int64
        assert entry.labels.tolist() == [[index] * 3, [index] * 3, [IGNORE] * 3]


@pytest.fixture
def pair(folders):
    return Pair(saved(np.zeros((4, 4, 3), np.uint8), folders[0] / "a.png"), folders[1] / "a.png")


def cached(predictor: Predictor, pair: Pair) -> CachedLogits:
    return CachedLogits(predictor, [pair], 255, LIMIT, lambda *_: None)


def test_labels_of_another_size_are_rejected(predictor, pair):
    saved(np.zeros((4, 5), np.uint8), pair.labels)
    with pytest.raises(ArgumentError, match=r"^a.png: expected labels of \(4, 4\) .*\(4, 5\)$"):
        cached(predictor, pair)


def test_labels_of_unknown_class_are_rejected(predictor, pair):
    saved(np.full((4, 4), 3, np.uint8), pair.labels)
    with pytest.raises(ArgumentError, match=r"^a.png: expected labels in 0..2 or 255 for void"):
        cached(predictor, pair)


def test_damaged_image_is_rejected(predictor, pair):
    saved(np.zeros((4, 4), np.uint8), pair.labels)
    pair.image.write_bytes(b"no image")
    with pytest.raises(UndecodableError):
        cached(predictor, pair)


def test_prediction_at_image_size_equals_the_service(folders, predictor):
    images, labels = folders
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 13, 3), np.uint8)  # neither side a multiple of the grid
    truth = rng.integers(0, 3, (9, 13), np.uint8)
    truth[0, 0] = 255
    Image.fromarray(image).save(images / "a.png")
    Image.fromarray(truth).save(labels / "a.png")
    data = CachedLogits(predictor, find_pairs(images, labels), 255, 10**6, lambda *_: None)
    halved = Temperature(3)
    halved.beta.fill_(0.5)
    prediction, found = predict(data, 0, halved)
    planes, geometry = predictor.prepare(image)
    logits = predictor.logits(planes)[0]
    mask, confidence = postprocessed(logits, logits / 2, geometry)

    assert (prediction.mask == mask).all()
    assert prediction.confidence == pytest.approx(confidence, abs=1e-6)
    assert found[0, 0] == IGNORE
    assert (found.numpy() == truth)[truth != 255].all()


def test_fit_reduces_labels_that_count_from_1(folders, tmp_path):
    images, labels = folders
    pair = Pair(saved(np.zeros((2, 6, 3), np.uint8), images / "a.png"), labels / "a.png")
    saved(np.array([[0, 0, 1, 1, 3, 3]] * 2, np.uint8), labels / "a.png")
    folder = write_onnx_model(tmp_path, "tiny", reduce_zero_label=True)
    predictor = open_predictor(read_model_folder(folder), "cpu", 1)
    assert cached(predictor, pair)[0].labels.tolist() == [[IGNORE, 0, 2]]


def test_fit_uses_the_logits_of_sliding_windows(folders, tmp_path):
    images, labels = folders
    image = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    pair = Pair(saved(image, images / "a.png"), labels / "a.png")
    saved(np.ones((37, 21), np.uint8), labels / "a.png")
    policy: dict[str, Any] = {"mode": "slide", "crop": [8, 12], "window_stride": [4, 8]}
    predictor = open_predictor(
        read_model_folder(write_onnx_model(tmp_path, "tiny", **policy)), "cpu", 1
    )
    strips = list(predictor.strips(predictor.prepare_windows(image)))
    logits = cached(predictor, pair)[0].logits
    assert logits.shape == (3, 19, 11)
    assert len(strips) > 3
    for (part,), band in strips:
        assert torch.equal(logits[:, band.top : band.top + part.shape[1]], part)


def test_image_is_resized_to_the_grid_of_the_logits(folders, predictor):
    images, labels = folders
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    pair = Pair(saved(image, images / "a.png"), labels / "a.png")
    saved(np.zeros((8, 12), np.uint8), labels / "a.png")
    data = CachedLogits(predictor, [pair], 255, LIMIT, lambda *_: None)

    seen, height, width = data[0].image, *data[0].labels.shape
    cells = image.reshape(height, 8 // height, width, 12 // width, 3).mean((1, 3))
    assert seen is not None
    assert seen.numpy().transpose(1, 2, 0) == pytest.approx(cells, abs=0.5)
