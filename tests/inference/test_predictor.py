from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from app.errors import ModelError
from app.inference.model_card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from app.inference.preprocess import Geometry
from tests.factories.models import TorchNetwork, expected_logits, write_card
from tests.factories.predictions import postprocessed
from tests.inference.conftest import KINDS

# Left red, right blue; the network's cells are 2x2 pixels.
HALVES = np.zeros((6, 8, 3), np.uint8)
HALVES[:, :4, 0] = 255
HALVES[:, 4:, 2] = 255


def open_folder(folder: Path) -> Predictor:
    return open_predictor(read_model_folder(folder), "cpu", 1)


# From image to prediction


@pytest.mark.parametrize("kind", KINDS)
def test_label_is_the_strongest_channel(tiny_folders, kind):
    predictor = open_folder(tiny_folders[kind])
    images, geometry = predictor.prepare(HALVES)
    logits = predictor.logits(images)
    assert logits.shape == (1, 3, 3, 4)
    mask, confidence = postprocessed(logits[0], logits[0], geometry)
    assert mask.tolist() == [[0] * 4 + [2] * 4] * 6
    # Logits (4, 0, 0): e^4 / (e^4 + 2).
    assert confidence[0, 0] == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-6)


def test_logits_follow_the_input_policy(tiny_predictor):
    predictor = tiny_predictor(mean=[0.5, 0.5, 0.5], std=[0.5, 0.25, 1.0], multiple_of=4)
    images, geometry = predictor.prepare(HALVES)
    assert geometry == Geometry((6, 8), (6, 8), (8, 8))
    # The last row is repeated below; red is (255 - 127.5) / 127.5 = 1, and so on.
    assert predictor.logits(images)[0, :, 3, 0].tolist() == pytest.approx([4.0, -8.0, -2.0])


def test_batch_has_the_logits_of_its_images_alone(tiny_predictor):
    predictor = tiny_predictor()
    images = torch.rand(3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([predictor.logits(image[None]) for image in images])
    assert torch.allclose(predictor.logits(images), alone, atol=1e-6)


# Test-time augmentation


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_flip_of_a_symmetric_network_changes_nothing(tiny_predictor, images):
    predictor = tiny_predictor()
    plain = torch.from_numpy(expected_logits(images.numpy())).log_softmax(1)
    flipped = predictor.logits(images, "flip")
    assert torch.allclose(flipped.double(), plain, atol=1e-5)


def test_flip_averages_log_probabilities_of_both_views(graph_folder):
    # Each class's logit is its channel times the column's number: it is not symmetric.
    folder = graph_folder(
        "ramp (float[n,3,h,2] image) => (float[n,3,h,2] logits)"
        "<float[2] column = {1, 2}> { logits = Mul(image, column) }",
        size=[1, 2],
    )
    images = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 1, 2)
    first = torch.tensor([1.0, 0.0, 0.0]).log_softmax(0)
    second = torch.tensor([2.0, 0.0, 0.0]).log_softmax(0)
    logits = open_folder(folder).logits(images, "flip")
    for column in (0, 1):
        assert torch.allclose(logits[0, :, 0, column], (first + second) / 2, atol=1e-6)


def test_multiscale_of_a_flat_image_changes_nothing(tiny_predictor):
    predictor = tiny_predictor()
    flat = torch.tensor([0.9, 0.5, 0.1])[None, :, None, None].expand(1, 3, 16, 24)
    expected = torch.tensor([3.6, 2.0, 0.4]).log_softmax(0)[None, :, None, None]
    logits = predictor.logits(flat, "multiscale")
    assert logits.shape == (1, 3, 8, 12)
    assert torch.allclose(logits, expected.expand(1, 3, 8, 12), atol=1e-4)


def test_multiscale_averages_three_scales_on_the_plain_grid(tiny_predictor, images):
    views = []
    for height, width in ((12, 18), (16, 24), (20, 30)):
        scaled = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        view = torch.from_numpy(expected_logits(scaled.numpy()))
        views.append(F.interpolate(view, (8, 12), mode="bilinear").log_softmax(1))
    logits = tiny_predictor().logits(images, "multiscale")
    assert torch.allclose(logits.double(), torch.stack(views).mean(0), atol=1e-4)


def test_multiscale_of_a_small_image_has_sides_in_multiples(tiny_predictor):
    small = torch.zeros(1, 3, 8, 8)
    assert tiny_predictor(multiple_of=8).logits(small, "multiscale").shape == (1, 3, 4, 4)


@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_logits_are_finite_single_precision(tiny_predictor, images, tta):
    logits = tiny_predictor().logits(images, tta)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


# Logits that are not finite


def test_nan_logits_give_uniform_confidence(graph_folder):
    # The logarithm of a negative value is NaN: all of the left pixel's logits are.
    folder = graph_folder(
        "logarithm (float[n,3,h,w] image) => (float[n,3,h,w] logits) { logits = Log(image) }"
    )
    images = torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [-1.0, np.e]])[None, :, None]
    logits = open_folder(folder).logits(images)
    assert logits.isfinite().all()
    _, confidence = postprocessed(logits[0], logits[0], Geometry((1, 2), (1, 2), (1, 2)))
    assert confidence[0].tolist() == pytest.approx([1 / 3, np.e / (np.e + 2)], abs=1e-6)


def test_one_nan_class_makes_the_pixel_uniform(graph_folder):
    folder = graph_folder(
        "root (float[n,3,h,w] image) => (float[n,3,h,w] logits) { logits = Sqrt(image) }",
        std=[0.1, 0.1, 0.1],  # inputs up to 10: with roots up to 1 they are taken for probabilities
    )
    logits = open_folder(folder).logits(torch.tensor([9.0, -1.0, 4.0])[None, :, None, None])
    assert logits.ravel().tolist() == [0, 0, 0]


def test_infinite_logits_are_clamped(graph_folder):
    # 1/0 is infinite, 1/-0 minus infinite.
    folder = graph_folder(
        "inverse (float[n,3,h,w] image) => (float[n,3,h,w] logits){ logits = Reciprocal(image) }"
    )
    logits = open_folder(folder).logits(torch.tensor([0.0, -0.0, 1.0])[None, :, None, None])
    assert logits.ravel().tolist() == [3e4, -3e4, 1]
    _, confidence = postprocessed(logits[0], logits[0], Geometry((1, 1), (1, 1), (1, 1)))
    assert confidence.item() == 1


# Models that do not match their card


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_class_count_is_rejected(tiny_folders, tmp_path, kind):
    folder = tmp_path / "tiny"
    folder.mkdir()
    file = f"model.{kind}"
    (folder / file).write_bytes((tiny_folders[kind] / file).read_bytes())
    write_card(folder, num_classes=4, file=file)
    with pytest.raises(ModelError) as raised:
        open_folder(folder)
    assert str(raised.value) == "tiny: expected logits [1,4,h,w], got [1, 3, 128, 160]"


def test_network_without_a_grid_is_rejected(graph_folder):
    folder = graph_folder(
        "flat (float[n,3,h,w] image) => (float[n,m] logits) { logits = Flatten(image) }"
    )
    with pytest.raises(ModelError, match=r"^graph: expected logits \[1,3,h,w\], got \[1, 245760\]"):
        open_folder(folder)


def test_network_of_another_size_is_rejected(graph_folder):
    folder = graph_folder(
        "fixed (float[1,3,64,64] image) => (float[1,3,64,64] logits) { logits = Neg(image) }"
    )
    with pytest.raises(ModelError) as raised:
        open_folder(folder)
    assert str(raised.value) == (
        "graph: expected a model that takes [1,3,256,320], got one exported for [1,3,64,64] only: "
        'set size = [64, 64] in the card (--size 64 64), or mode = "slide" with crop = [64, 64] '
        "(--mode slide)"
    )


def test_padding_to_another_size_is_named(graph_folder):
    folder = graph_folder(
        "fixed (float[1,3,50,64] image) => (float[1,3,50,64] logits) { logits = Neg(image) }",
        size=[50, 64],
        multiple_of=4,
    )
    with pytest.raises(ModelError, match=r"takes \[1,3,52,64\].* with a multiple_of that divides"):
        open_folder(folder)


def test_exported_program_of_another_size_is_rejected_with_its_own(tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir()
    example = torch.zeros(1, 3, 8, 12)
    torch.export.save(torch.export.export(TorchNetwork(), (example,)), folder / "model.pt2")
    write_card(folder, file="model.pt2")
    with pytest.raises(ModelError, match=r"got one exported for \[1,3,8,12\] only: set size = "):
        open_folder(folder)
    write_card(folder, file="model.pt2", size=[8, 12])
    assert open_folder(folder).grid(open_folder(folder).prepare_windows(HALVES)).shape[2:] == (4, 6)


def test_network_of_fixed_size_is_served_in_windows(graph_folder):
    folder = graph_folder(
        "fixed (float[1,3,4,4] image) => (float[1,3,4,4] logits) { logits = Neg(image) }",
        mode="slide", crop=[4, 4], window_stride=[2, 2],
    )  # fmt: skip
    predictor = open_folder(folder)
    grid = predictor.grid(predictor.prepare_windows(HALVES))
    assert np.allclose(grid[0], HALVES.transpose(2, 0, 1) / -255)


def test_network_of_fixed_size_is_loaded_with_that_size_on_its_card(graph_folder):
    folder = graph_folder(
        "fixed (float[1,3,64,64] image) => (float[1,3,64,64] logits) { logits = Neg(image) }",
        size=[64, 64],
    )
    predictor = open_folder(folder)
    images, geometry = predictor.prepare(HALVES)
    assert geometry == Geometry((6, 8), (64, 64), (64, 64))
    assert predictor.logits(images).shape == (1, 3, 64, 64)
