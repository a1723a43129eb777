from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.calibration.methods.contextual import Contextual, features
from app.calibration.registry import build
from app.errors import ModelError
from app.inference import sliding_window as sliding
from app.inference.model_card import read_model_folder
from app.inference.postprocess import allocate_prediction, postprocess_strip
from app.inference.predictor import Predictor, open_predictor
from app.inference.preprocess import Band
from app.inference.sliding_window import (
    Strip,
    WindowAxis,
    Windows,
    bands,
    blend_weights,
    strips,
    window_axis,
)
from app.serving.pipeline import predict_strips
from tests.factories.models import write_card, write_onnx_model
from tests.factories.predictions import postprocessed

CELL = 2
axis = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)).map(
    lambda sides: (sides[0] * CELL, max(sides[1:]) * CELL, min(sides[1:]) * CELL)
)  # total, crop and stride in pixels, in whole cells


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pooled(images: Tensor) -> Tensor:
    """Compute logits that depend on each cell's own pixels only."""
    return torch.nn.functional.avg_pool2d(images, CELL)


def windows(image: Tensor, down: WindowAxis, across: WindowAxis) -> Windows:
    def cut(row: int, column: int) -> Tensor:
        return image[:, :, row : row + down.length, column : column + across.length]

    return Windows(down, across, cut)


def joined(found: list[Strip]) -> Tensor:
    """Join the strips' own rows to the grid."""
    return torch.cat(
        [
            s.logits[:, :, s.band.cells.start - s.band.top :][:, :, : len(s.band.cells)]
            for s in found
        ],
        dim=2,
    )


# Places and weights of windows


def test_last_window_ends_with_the_axis():
    assert window_axis(total=10, crop=4, stride=4) == WindowAxis((0, 4, 6), 4, 10)


def test_window_at_the_axis_end_is_not_repeated():
    assert window_axis(total=12, crop=4, stride=4) == WindowAxis((0, 4, 8), 4, 12)


def test_axis_shorter_than_the_crop_is_one_window_of_its_own_length():
    assert window_axis(total=3, crop=8, stride=4) == WindowAxis((0,), 3, 3)


@given(axis)
def test_windows_cover_every_pixel_and_stay_inside(sides):
    line = window_axis(*sides)
    covered = Counter(pixel for start in line.starts for pixel in range(start, start + line.length))
    assert set(covered) == set(range(line.total))
    assert len(set(line.starts)) == len(line.starts)


@pytest.mark.parametrize("blend", ["hann", "mean"])
@given(sides=axis)
def test_weights_are_positive_and_sum_to_one_at_every_cell(blend, sides):
    line = window_axis(*sides)
    cells = line.length // CELL
    total = np.zeros(line.total // CELL)
    for start, weights in zip(line.starts, blend_weights(line, cells, blend), strict=True):
        assert weights.min() > 0
        total[start // CELL : start // CELL + cells] += weights
    assert np.abs(total - 1).max() < 1e-6


def test_hann_weights_by_hand():
    # sin^2 of 22.5, 67.5, ... degrees; the windows overlap by two of four cells.
    low, high = np.sin(np.pi / 8) ** 2, np.sin(3 * np.pi / 8) ** 2
    first, second = blend_weights(WindowAxis((0, 2), 4, 6), 4, "hann")
    assert first.tolist() == pytest.approx([1, 1, high, low])
    assert second.tolist() == pytest.approx([low, high, 1, 1])


def test_mean_weights_all_windows_equally():
    first, second = blend_weights(WindowAxis((0, 2), 4, 6), 4, "mean")
    assert first.tolist() == [1, 1, 0.5, 0.5]
    assert second.tolist() == [0.5, 0.5, 1, 1]


# Blended logits


@settings(max_examples=80, deadline=None)
@given(
    down=axis,
    across=axis,
    blend=st.sampled_from(["hann", "mean"]),
    receptive_radius=st.integers(0, 5),
)
def test_network_without_context_has_the_same_logits_in_windows(
    down, across, blend, receptive_radius
):
    image = noise(1, 3, down[0], across[0])
    cut = windows(image, window_axis(*down), window_axis(*across))
    found = list(strips(cut, pooled, blend, receptive_radius))
    assert torch.allclose(joined(found), pooled(image), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(down=axis, across=axis, receptive_radius=st.integers(0, 5))
def test_each_row_is_yielded_once_with_its_context(down, across, receptive_radius):
    image = noise(1, 3, down[0], across[0])
    cut = windows(image, window_axis(*down), window_axis(*across))
    expected, done = pooled(image), 0
    height = expected.shape[2]
    for logits, band in strips(cut, pooled, "hann", receptive_radius):
        assert (band.height, band.cells.start) == (height, done)
        done = band.cells.stop
        end = band.top + logits.shape[2]
        assert band.top <= max(0, band.cells.start - receptive_radius)
        assert band.top % 2 == 0
        assert end >= min(height, band.cells.stop + 1 + receptive_radius)
        assert torch.allclose(logits, expected[:, :, band.top : end], atol=1e-5)
    assert done == height


def test_logits_of_overlapping_windows_are_averaged_by_weight():
    calls = iter([0.0, 6.0])

    def network(images: Tensor) -> Tensor:
        return torch.full((1, 2, 4, 4), next(calls))

    cut = windows(noise(1, 3, 4, 6), WindowAxis((0,), 4, 4), WindowAxis((0, 2), 4, 6))
    (strip,) = strips(cut, network, "mean", 0)
    assert strip.logits[0, 0, 0].tolist() == [0, 0, 3, 3, 6, 6]


def test_rows_in_memory_do_not_grow_with_the_image():
    sizes = []
    for height in (40, 400, 4000):
        cut = windows(noise(1, 3, height, 16), window_axis(height, 16, 8), window_axis(16, 16, 8))
        sizes.append(max(s.logits.shape[2] for s in strips(cut, pooled, "hann", 4)))
    assert sizes[0] == sizes[1] == sizes[2] <= 8 + sliding.ALIGNMENT + 2 * 4


def test_strips_of_many_classes_are_split_by_their_bytes(monkeypatch):
    monkeypatch.setattr(sliding, "BAND_BYTES", 4 * 7 * 10 * 3)
    logits = noise(1, 7, 8, 10)
    found = list(bands(logits, 0, 8, range(8), 1))
    assert [len(strip.band.cells) for strip in found] == [3, 3, 2]
    assert torch.equal(joined(found), logits)


def test_grid_that_changes_between_windows_is_rejected():
    grids = iter([(4, 4), (4, 5)])
    cut = windows(noise(1, 3, 4, 6), WindowAxis((0,), 4, 4), WindowAxis((0, 2), 4, 6))
    with pytest.raises(ModelError, match=r"expected a grid of \(4, 4\) cells .*, got \(4, 5\)"):
        list(strips(cut, lambda _images: torch.zeros(1, 2, *next(grids)), "mean", 0))


# Whole models


def open_folder(folder: Path) -> Predictor:
    return open_predictor(read_model_folder(folder), "cpu", 1)


@pytest.fixture
def tiny(tmp_path):
    """Open the tiny network with given values on its card."""

    def make(**card) -> Predictor:
        folder = tmp_path / "tiny"
        if not folder.exists():
            write_onnx_model(tmp_path, "tiny")
        write_card(folder, **card)
        return open_folder(folder)

    return make


def make_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("size", ["native", (50, 46), {"short_side": 41}])
@pytest.mark.parametrize("shape", [(70, 33), (9, 61), (5, 5), (16, 16)])
def test_logits_of_mode_slide_equal_those_of_mode_whole(tiny, tta, size, shape):
    image = make_image(*shape)
    slide = tiny(size=size, mode="slide", crop=[16, 16], window_stride=[10, 12], multiple_of=2)
    prepared = slide.prepare_windows(image)
    found = joined(list(slide.strips(prepared, tta)))
    whole = tiny(size=size, multiple_of=2)
    images, geometry = whole.prepare(image)
    assert prepared.geometry == geometry
    assert torch.allclose(found, whole.logits(images, tta), atol=1e-5)
    assert torch.equal(slide.grid(prepared, tta), found)


def test_multiscale_acts_on_each_window_as_on_an_image(tiny):
    slide = tiny(mode="slide", crop=[16, 16], window_stride=[16, 16], multiple_of=2)
    image = make_image(32, 16)
    found = joined(list(slide.strips(slide.prepare_windows(image), "multiscale")))
    for top in (0, 16):
        images, _ = slide.prepare(image[top : top + 16])
        part = found[:, :, top // 2 : top // 2 + 8]
        assert torch.allclose(part, slide.logits(images, "multiscale"), atol=1e-5)


@pytest.mark.parametrize("method", ["temperature", "lts", "selective+lts"])
def test_calibrated_strips_predict_the_same_as_the_whole_grid(tiny, method):
    torch.manual_seed(0)
    calibrator = build(method, 3)
    for value in calibrator.state_dict().values():
        value.add_(0.05 * torch.randn(value.shape))
    image = make_image(88, 31)
    # Without overlap, so that labels where two classes tie stay what they are.
    slide = tiny(mode="slide", crop=[8, 16], window_stride=[8, 16], multiple_of=2)
    prepared = slide.prepare_windows(image)
    prediction = allocate_prediction(prepared.geometry, 3)
    found = list(slide.strips(prepared, receptive_radius=calibrator.invariances.receptive_radius))
    assert len(found) > 3
    for (logits,), band in found:
        calibrated = calibrator(logits[None])[0]
        postprocess_strip(logits, calibrated, prepared.geometry, band, prediction)
    images, geometry = slide.prepare(image)
    logits = slide.logits(images)
    expected = postprocessed(logits[0], calibrator(logits)[0], geometry)
    assert np.array_equal(prediction.mask, expected[0])
    assert np.abs(prediction.confidence - expected[1]).max() < 1e-5


def contextual():
    """Build a calibrator whose detector has random weights."""
    calibrator = Contextual(3)
    rng = torch.Generator().manual_seed(0)
    for parameter in calibrator.detector.parameters():
        parameter.normal_(0, 0.3, generator=rng)
    return calibrator


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strips_get_the_shift_and_the_score_of_the_whole_image(tiny, stride, monkeypatch):
    monkeypatch.setattr(features, "MIN_COLUMNS", 30 // stride)  # of the 30 of the grid
    calibrator = contextual()
    image = np.concatenate([make_image(64, 60) // 8, 255 - make_image(64, 60) // 8])
    slide = tiny(mode="slide", crop=[8, 60], window_stride=[8, 60], multiple_of=2)
    prepared = slide.prepare_windows(image)
    whole = slide.grid(prepared)[0]
    shift = calibrator.log_odds_shift(whole)
    statistics = torch.from_numpy(shift.sums.sum(0) / shift.shift.size)
    calibrator.score.mean.copy_(statistics)
    calibrator.score.mean[0] += 1.5  # half way to a score of 0
    calibrator.score.precision[0, 0] = 1.0
    strips = list(slide.strips(prepared, receptive_radius=calibrator.invariances.receptive_radius))
    assert len(strips) > 3
    (found,) = predict_strips(strips, prepared.geometry, [calibrator], None)
    at_once = [Strip(whole[None], Band.whole(whole.shape[1]))]
    (expected,) = predict_strips(at_once, prepared.geometry, [calibrator], None)
    assert expected.in_distribution == pytest.approx(0.5, abs=1e-4)
    assert found.in_distribution == pytest.approx(0.5, abs=1e-4)
    assert np.array_equal(found.mask, expected.mask)
    assert np.abs(found.confidence - expected.confidence).max() < 1e-4
    uncalibrated = postprocessed(whole, whole, prepared.geometry)[1]
    assert np.abs(expected.confidence - uncalibrated).max() > 0.02


FIXED = "fixed (float[1,3,16,16] image) => (float[1,3,16,16] logits) { logits = Neg(image) }"


def test_network_of_one_size_segments_images_of_any_size(graph_folder):
    slide = open_folder(
        graph_folder(FIXED, mode="slide", crop=[16, 16], window_stride=[8, 8], multiple_of=4)
    )
    for height, width in ((5, 7), (16, 16), (40, 9), (30, 70)):
        prepared = slide.prepare_windows(make_image(height, width))
        high, wide = prepared.geometry.padded
        assert min(high, wide) >= 16
        assert joined(list(slide.strips(prepared))).shape == (1, 3, high, wide)


def test_image_that_fits_one_window_is_run_as_in_mode_whole(tiny):
    slide = tiny(mode="slide", crop=[64, 64], window_stride=[32, 32], multiple_of=2)
    image = make_image(20, 30)
    (strip,) = slide.strips(slide.prepare_windows(image))
    images, geometry = slide.prepare(image)
    assert geometry.padded == (20, 30)
    assert torch.equal(strip.logits, slide.logits(images))


def test_windows_that_do_not_begin_at_cells_are_rejected(tiny):
    with pytest.raises(ModelError) as raised:
        tiny(mode="slide", crop=[16, 15], window_stride=[5, 5], multiple_of=1)
    assert str(raised.value).startswith(
        "tiny: expected multiple_of to be a multiple of the network's cells, got 1 and a grid of "
    )
