import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.calibration.predictions import Prediction
from app.inference.postprocess import class_statistics


def test_statistics_of_an_image_by_hand():
    mask = np.array([[0, 0, 2], [2, 255, 0]], np.uint8)
    confidence = np.array([[0.5, 0.25, 1.0], [0.5, 0.125, 0.75]], np.float32)
    sums = class_statistics(Prediction(mask, confidence))
    assert sums.pixels.dtype == np.int64
    assert sums.confidence.dtype == np.float64
    assert {k: int(n) for k, n in enumerate(sums.pixels) if n} == {0: 3, 2: 2, 255: 1}
    assert sums.confidence[[0, 2, 255]].tolist() == [1.5, 1.5, 0.125]
    assert sums.mean_confidence == pytest.approx(3.125 / 6)
    assert sums.abstained_fraction == pytest.approx(1 / 6)


@settings(max_examples=40, deadline=None)
@given(
    mask=st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))
    ),
    seed=st.integers(0, 99),
)
def test_statistics_equal_those_of_bincount(mask, seed):
    confidence = np.random.default_rng(seed).random(mask.shape, np.float32)
    sums, values = class_statistics(Prediction(mask, confidence)), np.iinfo(mask.dtype).max + 1
    assert np.array_equal(sums.pixels, np.bincount(mask.ravel(), minlength=values))
    expected = np.bincount(mask.ravel(), confidence.ravel(), values)
    assert np.allclose(sums.confidence, expected, rtol=1e-12)
