"""Units that intervals resample: the given groups, or blocks of eight images in file order."""

import math

import numpy as np
import pytest

from app.calibration.metrics.intervals import bootstrap_mean
from app.errors import ArgumentError
from app.evaluation.resampling import SEED, ResamplingUnits


def test_without_groups_eight_consecutive_images_are_one_unit():
    units = ResamplingUnits.of(None, 20)
    assert units.index == [0] * 8 + [1] * 8 + [2] * 4
    assert (units.singular, units.plural) == ("block of 8 images", "blocks of 8 images")


def test_groups_are_the_units_where_they_are_given():
    units = ResamplingUnits.of([3, 1, 3], 3)
    assert units.index == [3, 1, 3]
    assert (units.singular, units.plural) == ("group", "groups")


def test_groups_of_another_number_of_images_are_rejected():
    with pytest.raises(ArgumentError, match="expected a group for each of 3 images, got 2"):
        ResamplingUnits.of([0, 1], 3)


def test_interval_is_that_of_the_units():
    values = np.random.default_rng(0).uniform(size=80).tolist()
    units = ResamplingUnits.of(None, 80)
    assert units.interval(values) == bootstrap_mean(values, SEED, [i // 8 for i in range(80)])
    shifted = [value + 0.25 for value in values]
    assert units.difference(shifted, values) == pytest.approx((0.25, 0.25, 0.25))


def test_interval_of_a_video_is_wider_by_block_than_by_frame():
    """Runs of eight equal frames hold an eighth of the information of independent images."""
    frames = np.random.default_rng(0).normal(size=40).repeat(8).tolist()
    by_block = ResamplingUnits.of(None, 320).interval(frames)
    by_frame = bootstrap_mean(frames, SEED)
    ratio = (by_block.high - by_block.low) / (by_frame.high - by_frame.low)
    assert ratio == pytest.approx(8**0.5, rel=0.15)


def test_fewer_than_ten_units_give_no_interval():
    values = [*range(72), math.nan]
    units = ResamplingUnits.of(None, 73)  # the tenth block holds an image without a label only
    assert units.count(values) == 9
    assert units.interval(values) == pytest.approx((35.5, math.nan, math.nan), nan_ok=True)
    assert not math.isnan(ResamplingUnits.of(None, 73).interval([*range(73)]).low)
