import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.errors import TooLargeError
from app.inference.model_card import InputPolicy, ShortSide
from app.inference.preprocess import Geometry, normalised, plan, preprocess, thumbnail


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "size", "multiple_of", "resized", "padded"),
    [
        ((480, 360), "native", 32, (480, 360), (480, 384)),
        ((64, 32), "native", 32, (64, 32), (64, 32)),
        ((1, 1), "native", 32, (1, 1), (32, 32)),
        ((5, 7), "native", 1, (5, 7), (5, 7)),
        ((100, 300), (64, 48), 16, (64, 48), (64, 48)),
        ((100, 300), (60, 50), 16, (60, 50), (64, 64)),
        ((100, 300), ShortSide(short_side=50), 1, (50, 150), (50, 150)),
        ((300, 100), ShortSide(short_side=200), 64, (600, 200), (640, 256)),
        ((1000, 3), ShortSide(short_side=2), 1, (667, 2), (667, 2)),
    ],
)
def test_plan_computes_sizes(image, size, multiple_of, resized, padded):
    policy = InputPolicy(size=size, multiple_of=multiple_of)
    assert plan(image, policy) == Geometry(image, resized, padded)


@given(
    image=st.tuples(st.integers(4, 900), st.integers(4, 900)),  # thinner ones may be rejected
    side=st.integers(1, 300),
    multiple=st.integers(1, 64),
)
def test_plan_pads_to_multiples_by_less_than_one(image, side, multiple):
    geometry = plan(image, InputPolicy(size=ShortSide(short_side=side), multiple_of=multiple))
    assert min(geometry.resized) == side
    for resized, padded in zip(geometry.resized, geometry.padded, strict=True):
        assert padded % multiple == 0
        assert resized <= padded < resized + multiple


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ((1, 40_000_000), InputPolicy()),
        ((40_000_000, 1), InputPolicy()),
        ((1, 1_000_000), InputPolicy(size=ShortSide(short_side=512))),
    ],
)
def test_image_too_thin_for_the_policy_is_rejected(image, policy):
    with pytest.raises(TooLargeError, match=f"got {image[1]}x{image[0]}, which its input policy"):
        plan(image, policy)


def test_large_image_that_hardly_grows_is_accepted():
    assert plan((7001, 7001), InputPolicy()).padded == (7008, 7008)


def test_native_image_is_scaled_to_0_1(image):
    images, geometry = preprocess(image, InputPolicy(multiple_of=1))
    assert images.shape == (1, 3, 5, 7)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    assert geometry == Geometry((5, 7), (5, 7), (5, 7))
    assert np.allclose(images[0], image.transpose(2, 0, 1) / 255, atol=1e-7)


def test_normalisation_by_hand():
    pixel = np.array([[[255, 51, 0]]], np.uint8)  # 1, 0.2 and 0 on the unit scale
    policy = InputPolicy(mean=(0.5, 0.2, 0.4), std=(0.25, 0.5, 2.0), multiple_of=1)
    images, _ = preprocess(pixel, policy)
    assert images.ravel().tolist() == pytest.approx([2.0, 0.0, -0.2], abs=1e-6)


def test_padding_repeats_the_edge_right_and_below(image):
    images, geometry = preprocess(image, InputPolicy(multiple_of=8))
    assert geometry.padded == (8, 8)
    expected = np.pad(image, ((0, 3), (0, 1), (0, 0)), mode="edge").transpose(2, 0, 1) / 255
    assert np.allclose(images[0], expected, atol=1e-7)


def test_resizing_is_bilinear_and_comes_before_padding(image):
    images, geometry = preprocess(image, InputPolicy(size=(10, 13), multiple_of=4))
    assert geometry == Geometry((5, 7), (10, 13), (12, 16))
    small = np.asarray(Image.fromarray(image).resize((13, 10), Image.Resampling.BILINEAR))
    assert np.allclose(images[0, :, :10, :13], small.transpose(2, 0, 1) / 255, atol=1e-7)
    assert (images[0, :, 10:, :] == images[0, :, 9:10, :]).all()
    assert (images[0, :, :, 13:] == images[0, :, :, 12:13]).all()


@pytest.mark.parametrize(
    ("resample", "expected"),
    [
        ("area", [40, 160]),  # the mean of each half
        ("bilinear", [360 / 7, 1040 / 7]),  # weights 3, 3 and 1 of triangles of twice the width
        ("bicubic", [43.6, 156.4]),
    ],
)
def test_resampling_is_the_policys(resample, expected):
    image = np.repeat(np.array([[[0], [80], [120], [200]]], np.uint8), 3, axis=2)
    policy = InputPolicy(size=(1, 2), multiple_of=1, resample=resample)
    images, _ = preprocess(image, policy)
    assert (images[0, 0, 0] * 255).tolist() == pytest.approx(expected, abs=1)


def test_bgr_network_gets_blue_first_and_mean_and_std_stay_rgb():
    pixel = np.array([[[255, 51, 0]]], np.uint8)
    policy = InputPolicy(mean=(0.5, 0.2, 0.4), std=(0.25, 0.5, 2.0), multiple_of=1, channels="bgr")
    images, _ = preprocess(pixel, policy)
    assert images.ravel().tolist() == pytest.approx([-0.2, 0.0, 2.0], abs=1e-6)


@pytest.mark.parametrize(
    ("image", "resized", "padded"),
    [
        ((100, 200), (32, 64), (64, 64)),  # wide: padded below
        ((200, 100), (64, 32), (64, 64)),
        ((64, 64), (64, 64), (64, 64)),
        ((1, 1000), (1, 64), (64, 64)),
    ],
)
def test_letterbox_keeps_the_aspect_ratio_and_pads(image, resized, padded):
    policy = InputPolicy(size=(64, 64), fit="letterbox", multiple_of=16)
    assert plan(image, policy) == Geometry(image, resized, padded)


def test_letterbox_is_padded_to_multiples():
    policy = InputPolicy(size=(60, 60), fit="letterbox", multiple_of=16)
    assert plan((100, 200), policy).padded == (64, 64)


def test_resizing_keeps_a_flat_image_flat():
    flat = np.full((5, 7, 3), 102, np.uint8)
    images, _ = preprocess(flat, InputPolicy(size=ShortSide(short_side=11), multiple_of=16))
    assert np.allclose(images, 0.4)


def test_image_is_not_modified(image):
    before = image.copy()
    preprocess(image, InputPolicy(mean=(0.5, 0.5, 0.5), multiple_of=1))
    assert np.array_equal(image, before)


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    window=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fraction=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    frozen=st.booleans(),
)
def test_windows_are_cut_padded_and_scaled(size, window, fraction, frozen):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.flags.writeable = not frozen
    policy = InputPolicy(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    corner = int(fraction[0] * size[0]), int(fraction[1] * size[1])
    found = normalised(image, policy, corner, window)
    rows, columns = (
        np.minimum(np.arange(start, start + length), side - 1)
        for start, length, side in zip(corner, window, size, strict=True)
    )
    expected = (image[rows][:, columns] / 255 - policy.mean) / policy.std
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), atol=2e-6)
    assert image.flags.writeable != frozen  # the image itself is not touched


def test_thumbnail_by_hand():
    image = np.zeros((3, 4, 3), np.uint8)
    image[:2, :2, 0] = [[10, 20], [30, 40]]
    image[2, :, 1] = [8, 8, 0, 4]
    # A grid of 2x2 over 4x4, of which the last row is padding: it repeats the edge.
    geometry = Geometry((3, 4), (3, 4), (4, 4))
    means = thumbnail(image, geometry, (2, 2), range(2))
    assert means.dtype == np.uint8
    assert means.tolist() == [[[25, 0], [0, 0]], [[0, 0], [8, 2]], [[0, 0], [0, 0]]]
    assert np.array_equal(thumbnail(image, geometry, (2, 2), range(1, 2)), means[:, 1:])


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    multiple=st.sampled_from([1, 4, 8]),
    cells=st.sampled_from([0.5, 1, 2, 4]),
    seed=st.integers(0, 9),
)
def test_thumbnail_of_parts_is_that_of_the_whole(size, multiple, cells, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    padded = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
    geometry = Geometry(size, size, padded)
    grid = (max(int(padded[0] / cells), 1), max(int(padded[1] / cells), 1))
    whole = thumbnail(image, geometry, grid, range(grid[0]))
    assert whole.shape == (3, *grid)
    middle = grid[0] // 2
    parts = [range(middle), range(middle, grid[0])]
    joined = np.concatenate([thumbnail(image, geometry, grid, rows) for rows in parts if rows], 1)
    assert np.array_equal(whole, joined)
    if cells <= 1:
        finest = np.pad(image, [(0, padded[0] - size[0]), (0, padded[1] - size[1]), (0, 0)], "edge")
        repeated = finest.repeat(round(1 / cells), 0).repeat(round(1 / cells), 1)
        assert np.array_equal(whole, repeated.transpose(2, 0, 1))
