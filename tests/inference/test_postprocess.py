import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from app.calibration.methods.contextual.features import interpolated
from app.calibration.predictions import Confidence, Mask
from app.inference.model_card import InputPolicy
from app.inference.postprocess import allocate_prediction, postprocess_strip, shift_confidence
from app.inference.preprocess import Band, Geometry, plan
from app.inference.threads import RowWorkers
from tests.factories.predictions import postprocessed


def upsampled(grid: Tensor, geometry: Geometry) -> Tensor:
    """Upsample logits to float64 [K,H,W] by torch's grid sampler, as an independent reference."""
    axes = []
    for axis, count in enumerate(geometry.image):
        centre = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # of the image
        fraction = centre * geometry.resized[axis] / geometry.padded[axis]  # of the grid
        axes.append(2 * fraction - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([x, y], -1)[None]
    return F.grid_sample(
        grid.double()[None], points, "bilinear", padding_mode="border", align_corners=False
    )[0]


def assert_agrees(
    mask: Mask, confidence: Confidence, label_logits: Tensor, calibrated: Tensor
) -> None:
    """Compare with full-size logits float64 [K,H,W]; labels may differ where two classes tie."""
    top = label_logits.amax(0)
    chosen = label_logits.gather(0, torch.from_numpy(mask.astype(np.int64))[None])[0]
    assert (top - chosen).max() < 1e-4
    best = label_logits.topk(min(2, len(label_logits)), dim=0).values
    clear = (best[0] - best[-1]).numpy() > 1e-4
    assert np.array_equal(mask[clear], label_logits.argmax(0).numpy()[clear])
    expected = calibrated.softmax(0).gather(0, torch.from_numpy(mask.astype(np.int64))[None])[0]
    assert np.abs(confidence - expected.numpy()).max() < 2e-6


def native(height: int, width: int) -> Geometry:
    return Geometry((height, width), (height, width), (height, width))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def test_two_by_two_cells_become_four_by_four_pixels():
    # Pixel centres lie at -1/4 (clamped to 0), 1/4, 3/4 and 5/4 (clamped to 1) of the way.
    logits = torch.tensor([[[0.0, 4.0], [8.0, 4.0]], [[4.0, 4.0], [4.0, 4.0]]])
    mask, confidence = postprocessed(logits, logits, native(4, 4))
    first = np.array([[0, 1, 3, 4], [2, 2.5, 3.5, 4], [6, 5.5, 4.5, 4], [8, 7, 5, 4]])
    assert mask.dtype == np.uint8
    assert confidence.dtype == np.float32
    # Where both have 4 the lower class is chosen.
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert np.allclose(confidence, 1 / (1 + np.exp(-np.abs(first - 4))), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 11, 19, 150, 255, 256, 300])
def test_prediction_equals_interpolate_softmax_max(classes):
    logits = noise(classes, 5, 6)
    mask, confidence = postprocessed(logits, logits, native(20, 24))
    fine = F.interpolate(logits.double()[None], (20, 24), mode="bilinear", align_corners=False)[0]
    assert mask.dtype == (np.uint8 if classes < 256 else np.uint16)
    assert_agrees(mask, confidence, fine, fine)


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((1, 1), (7, 5)),
        ((1, 9), (4, 36)),
        ((9, 1), (36, 4)),
        ((1, 9), (1, 9)),
        ((4, 4), (1, 1)),
        ((3, 5), (97, 101)),
        ((40, 30), (40, 30)),
        ((40, 30), (13, 7)),
        ((2, 2), (2, 300)),
    ],
)
def test_prediction_at_any_shape(grid, size):
    logits = noise(4, *grid)
    mask, confidence = postprocessed(logits, logits, native(*size))
    fine = F.interpolate(logits.double()[None], size, mode="bilinear", align_corners=False)[0]
    assert mask.shape == confidence.shape == size
    assert_agrees(mask, confidence, fine, fine)


def test_padding_is_cut_off():
    geometry = Geometry((50, 61), (50, 61), (64, 64))
    logits = noise(3, 16, 16)
    mask, confidence = postprocessed(logits, logits, geometry)
    fine = F.interpolate(logits.double()[None], (64, 64), mode="bilinear", align_corners=False)[0]
    assert_agrees(mask, confidence, fine[:, :50, :61], fine[:, :50, :61])


@settings(max_examples=60, deadline=None)
@given(
    image=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.sampled_from(["native", (24, 17), (64, 64), {"short_side": 13}]),
    stride=st.sampled_from([1, 2, 4, 8]),
    classes=st.integers(2, 6),
)
def test_prediction_undoes_resizing_and_padding(image, size, stride, classes):
    geometry = plan(image, InputPolicy.model_validate({"size": size, "multiple_of": 8}))
    logits = noise(classes, geometry.padded[0] // stride, geometry.padded[1] // stride)
    mask, confidence = postprocessed(logits, logits, geometry)
    fine = upsampled(logits, geometry)
    assert mask.shape == image
    assert_agrees(mask, confidence, fine, fine)


def test_large_image_of_many_classes_has_no_seams():
    # 150 full-size planes are about 40 MiB, more than is upsampled at a time.
    logits = noise(150, 32, 16)
    geometry = native(256, 260)
    mask, confidence = postprocessed(logits, logits, geometry)
    fine = upsampled(logits, geometry)
    assert_agrees(mask, confidence, fine, fine)


def test_lowest_class_wins_a_tie():
    mask, confidence = postprocessed(torch.zeros(5, 3, 3), torch.zeros(5, 3, 3), native(6, 6))
    assert not mask.any()
    assert np.allclose(confidence, 0.2)


def test_confidence_is_the_calibrated_probability_of_the_label():
    logits = torch.tensor([2.0, 1.0, 0.0])[:, None, None]
    calibrated = torch.tensor([0.1, 0.7, 0.2]).log()[:, None, None]
    mask, confidence = postprocessed(logits, calibrated, native(2, 2))
    assert (mask == 0).all()
    assert np.allclose(confidence, 0.1)


def test_calibrator_that_changes_labels_sets_label_and_confidence():
    calibrated = torch.tensor([0.1, 0.7, 0.2]).log()[:, None, None]
    mask, confidence = postprocessed(calibrated, calibrated, native(2, 2))
    assert (mask == 1).all()
    assert np.allclose(confidence, 0.7)


def test_labels_and_confidence_from_two_grids_agree_with_both():
    logits, calibrated = noise(7, 9, 8), noise(7, 9, 8, seed=1)
    geometry = Geometry((31, 29), (31, 29), (36, 32))
    mask, confidence = postprocessed(logits, calibrated, geometry)
    assert_agrees(mask, confidence, upsampled(logits, geometry), upsampled(calibrated, geometry))


def test_extreme_logits_stay_within_zero_and_one():
    logits = torch.tensor([3e4, -3e4])[:, None, None]
    mask, confidence = postprocessed(logits, logits, native(1, 1))
    assert (mask.item(), confidence.item()) == (0, 1.0)
    _, confidence = postprocessed(logits, -logits, native(1, 1))
    assert confidence.item() == 0.0


def test_temperature_on_the_grid_equals_temperature_at_full_size():
    # An affine map commutes with upsampling, so calibrating on the small grid loses nothing.
    logits, geometry = noise(3, 6, 5), native(24, 20)
    _, confidence = postprocessed(logits, logits / 2.5, geometry)
    fine = upsampled(logits, geometry)
    expected = (fine / 2.5).softmax(0).gather(0, fine.argmax(0)[None])[0]
    assert np.abs(confidence - expected.numpy()).max() < 2e-6


def test_softmax_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])[:, None, None]
    mask, confidence = postprocessed(logits, logits, native(1, 1))
    assert mask.item() == 1
    assert confidence.item() == pytest.approx(0.75)


FORMS = ["plain", "scaled", "separate", "relabelled"]


@st.composite
def layouts(draw) -> tuple[Geometry, tuple[int, int]]:
    """Draw a geometry and a grid, with or without a whole number of pixels for each cell."""
    resized = draw(st.tuples(st.integers(1, 90), st.integers(1, 330)))
    padded = tuple(side + draw(st.integers(0, 15)) for side in resized)
    same = draw(st.booleans())
    image = resized if same else draw(st.tuples(st.integers(1, 90), st.integers(1, 330)))
    stride = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    if draw(st.booleans()):
        padded = tuple(-(-side // stride) * stride for side in padded)
    grid = tuple(max(1, side // stride) for side in padded)
    return Geometry(image, resized, padded), grid


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts(),
    classes=st.one_of(st.integers(2, 24), st.sampled_from([150, 254, 255, 256, 257, 300])),
    form=st.sampled_from(FORMS),
    spread=st.sampled_from([0.0, 0.1, 3.0, 40.0]),
    seed=st.integers(0, 1000),
)
def test_every_form_agrees_with_float64_at_any_geometry(layout, classes, form, spread, seed):
    geometry, grid = layout
    logits = noise(classes, *grid, seed=seed) / 3 * spread
    other = noise(classes, *grid, seed=seed + 1) / 3 * spread
    label_logits, confidence_logits, scale = {
        "plain": (logits, logits, 1.0),
        "scaled": (logits, logits, 0.37),
        "separate": (logits, other, 1.0),
        "relabelled": (other, other, 1.0),
    }[form]
    mask, confidence = postprocessed(label_logits, confidence_logits, geometry, scale=scale)
    assert mask.dtype == (np.uint8 if classes < 256 else np.uint16)
    fine = upsampled(label_logits, geometry)
    chosen = fine.gather(0, torch.from_numpy(mask.astype(np.int64))[None])[0]
    assert (fine.amax(0) - chosen).max() <= 1e-6 * (1 + 10 * spread)
    probabilities = upsampled(confidence_logits, geometry).mul(scale).softmax(0)
    expected = probabilities.gather(0, torch.from_numpy(mask.astype(np.int64))[None])[0]
    assert np.abs(confidence - expected.numpy()).max() <= 2e-6 * (1 + spread)


def test_confidence_is_accurate_to_half_a_unit_of_a_16_bit_map():
    # Logits of a realistic spread: pixels of low and high confidence.
    logits, geometry = noise(19, 40, 60) * 2, native(160, 240)
    _, confidence = postprocessed(logits, logits, geometry)
    fine = upsampled(logits, geometry).softmax(0).amax(0).numpy()
    assert np.abs(confidence - fine).max() < 0.5 / 65535


@pytest.mark.parametrize("form", FORMS)
def test_adjacent_cells_of_extreme_logits_for_different_classes(form):
    # Between them all classes are far below the highest logits of either cell: sums underflow.
    logits = torch.full((6, 2, 3), -3e4)
    logits[[0, 3, 5, 2, 2, 1], [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]] = 3e4
    confidence_logits = logits.flip(0) if form == "separate" else logits
    scale = 0.01 if form == "scaled" else 1.0
    geometry = native(8, 15)
    mask, confidence = postprocessed(logits, confidence_logits, geometry, scale=scale)
    fine = upsampled(logits, geometry)
    probabilities = upsampled(confidence_logits, geometry).mul(scale).softmax(0)
    chosen = torch.from_numpy(mask.astype(np.int64))[None]
    assert (fine.amax(0) - fine.gather(0, chosen)[0]).max() < 0.02
    # At 3e4 float32 resolves logits to 0.004, and a product of weights to a little less.
    assert np.abs(confidence - probabilities.gather(0, chosen)[0].numpy()).max() < 0.01
    assert confidence.min() >= 0
    assert confidence.max() <= 1


@pytest.mark.parametrize("classes", [2, 3, 150, 300])
def test_equal_logits_give_the_lowest_class_and_uniform_confidence(classes):
    logits = torch.full((classes, 5, 7), 12.5)
    mask, confidence = postprocessed(logits, logits, native(20, 28))
    assert not mask.any()
    assert np.allclose(confidence, 1 / classes, rtol=1e-6)


def test_labels_at_cell_centres_are_the_argmax_however_small_the_margin():
    logits = torch.full((3, 4, 4), 1.0)
    logits[2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    mask, _ = postprocessed(logits, logits, native(4, 4))
    assert (mask == 2).all()


def test_logits_that_are_not_contiguous():
    logits = noise(5, 12, 9)
    transposed = logits.transpose(1, 2)
    mask, confidence = postprocessed(transposed, transposed, native(18, 24))
    fine = upsampled(transposed, native(18, 24))
    assert_agrees(mask, confidence, fine, fine)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_do_not_change_the_prediction(count):
    logits, calibrated = noise(19, 40, 60), noise(19, 40, 60, seed=1)
    geometry = native(160, 240)
    alone = postprocessed(logits, calibrated, geometry)
    parallel = postprocessed(logits, calibrated, geometry, workers=RowWorkers(count))
    assert np.array_equal(alone[0], parallel[0])
    assert np.array_equal(alone[1], parallel[1])


def test_concurrent_requests_have_the_same_predictions_as_alone():
    workers, geometry = RowWorkers(3), native(160, 240)
    images = [noise(11 + n, 40, 60, seed=n) for n in range(8)]
    alone = [postprocessed(logits, logits, geometry) for logits in images]
    with ThreadPoolExecutor(8) as requests:
        for _ in range(5):
            concurrent = requests.map(
                lambda logits: postprocessed(logits, logits, geometry, workers=workers), images
            )
            for expected, got in zip(alone, concurrent, strict=True):
                assert np.array_equal(expected[0], got[0])
                assert np.array_equal(expected[1], got[1])


@settings(max_examples=60, deadline=None)
@given(
    image=st.tuples(st.integers(1, 60), st.integers(1, 40)),
    size=st.sampled_from(["native", (24, 17), {"short_side": 13}]),
    stride=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 9),
)
def test_bands_that_partition_the_grid_write_the_whole_image(image, size, stride, rows):
    geometry = plan(image, InputPolicy.model_validate({"size": size, "multiple_of": 8}))
    height, width = geometry.padded[0] // stride, geometry.padded[1] // stride
    logits, calibrated = noise(3, height, width), noise(3, height, width, seed=1)
    prediction = allocate_prediction(geometry, 3)
    prediction.mask[:], prediction.confidence[:] = 99, np.nan
    for start in range(0, height, rows):
        cells = range(start, min(start + rows, height))
        top = max(0, start - 2)  # a band may hold more rows than are needed
        part = slice(top, cells.stop + 1)
        band = Band(top, height, cells)
        postprocess_strip(logits[:, part], calibrated[:, part], geometry, band, prediction)
    expected = postprocessed(logits, calibrated, geometry)
    assert np.array_equal(prediction.mask, expected[0])
    assert np.array_equal(prediction.confidence, expected[1])


def test_shift_of_log_odds_by_hand():
    # Confidence 3/4 has odds 3; log 2 more makes them 6, which is 6/7.
    logits = torch.log(torch.tensor([3.0, 1.0]))[:, None, None].expand(2, 2, 2)
    shift = np.full((2, 2), math.log(2), np.float32)
    mask, confidence = postprocessed(logits, logits, native(4, 4))
    shift_confidence(confidence, shift, 0.5, (2, 2), 1, native(4, 4))
    assert not mask.any()
    assert confidence.ravel().tolist() == pytest.approx([6 / 7] * 16)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_shift_is_interpolated_and_changes_no_label(threads, stride):
    logits, shift = noise(7, 30, 40), noise(1, 30, 40, seed=5)[0]
    geometry = Geometry((110, 150), (110, 150), (120, 160))
    plain_mask, plain_confidence = postprocessed(logits, logits, geometry)
    mask, confidence = postprocessed(logits, logits, geometry, workers=RowWorkers(threads))
    kept = shift[::stride, ::stride].contiguous()
    shift_confidence(confidence, kept.numpy(), 0.0, (30, 40), stride, geometry, RowWorkers(threads))
    assert np.array_equal(mask, plain_mask)
    fine = upsampled(interpolated(kept[None, None], (30, 40), stride)[0], geometry)[0]
    log_odds = torch.from_numpy(plain_confidence).double().logit() + fine
    assert np.abs(confidence - log_odds.sigmoid().numpy()).max() < 1e-5


def test_no_confidence_falls_below_the_floor():
    logits = torch.tensor([0.5, 0.0, 0.0])[:, None, None].expand(3, 3, 3)
    _, confidence = postprocessed(logits, logits, native(3, 3))
    shift = np.full((3, 3), -5, np.float32)
    shift_confidence(confidence, shift, 1 / 3, (3, 3), 1, native(3, 3))
    assert confidence.ravel().tolist() == pytest.approx([1 / 3] * 9)


@pytest.mark.parametrize(("shift", "log_odds"), [(-2, 10), (-14, -2)])
def test_log_odds_of_a_confidence_of_1_count_as_12(shift, log_odds):
    logits = torch.tensor([200.0, 0.0])[:, None, None].expand(2, 3, 3)
    _, confidence = postprocessed(logits, logits, native(3, 3))
    change = np.full((3, 3), shift, np.float32)
    shift_confidence(confidence, change, 0.1, (3, 3), 1, native(3, 3))
    assert np.log(confidence / (1 - confidence)) == pytest.approx(log_odds, abs=0.02)


def test_confidence_of_1_is_kept_without_a_shift():
    logits = torch.tensor([200.0, 0.0])[:, None, None].expand(2, 3, 3)
    _, confidence = postprocessed(logits, logits, native(3, 3))
    shift_confidence(confidence, np.zeros((3, 3), np.float32), 0.5, (3, 3), 1, native(3, 3))
    assert (confidence == 1).all()
