import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.calibration.base import FitContext
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.isotonic import (
    Isotonic,
    IsotonicOneVsAll,
    log_odds,
    pool_adjacent_violators,
)
from tests.factories.logits import synthetic_set


def test_pooling_by_hand():
    values, weights = np.array([1.0, 3.0, 2.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])
    assert pool_adjacent_violators(values, weights).tolist() == [1, 2.25, 2.25, 4]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 5)), min_size=1, max_size=30))
def test_pooling_is_monotone_and_keeps_the_mean(pairs):
    values, weights = (np.array(part) for part in zip(*pairs, strict=True))
    pooled = pool_adjacent_violators(values, weights)
    assert (np.diff(pooled) >= -1e-12).all()
    assert pooled @ weights == pytest.approx(values @ weights, abs=1e-9)


def test_log_odds_are_exact_where_the_probability_is_one():
    odds = log_odds(torch.tensor([[25.0, 0.0], [0.0, 1.0]]))
    assert odds.tolist() == [pytest.approx([25, -25]), pytest.approx([-1, 1])]


def test_frequencies_are_reached():
    # Probability 0.88 is right 70 times in 100.
    logits = torch.tensor([[2.0, 0.0]]).expand(100, 2).T
    data = InMemory(2, [LabelledImage(logits, torch.tensor([0] * 70 + [1] * 30))])
    for kind in (Isotonic, IsotonicOneVsAll):
        calibrator = kind(2)
        calibrator.fit(data, FitContext())
        result = calibrator(torch.tensor([[2.0, 0.0]])).exp()[0]
        assert result.tolist() == pytest.approx([0.7, 0.3], abs=0.01)


@pytest.mark.parametrize("kind", [Isotonic, IsotonicOneVsAll])
def test_functions_increase_strictly(kind):
    calibrator = kind(4)
    calibrator.fit(synthetic_set(4), FitContext())
    assert (calibrator.table.diff(dim=1) > 0).all()


def test_function_of_absent_class_is_the_identity():
    data = synthetic_set(4)
    images = [
        image._replace(labels=image.labels.where(image.labels != 2, -1)) for image in data.images
    ]
    calibrator = IsotonicOneVsAll(4)
    calibrator.fit(InMemory(4, images), FitContext())
    assert torch.equal(calibrator.table[2], IsotonicOneVsAll(4).table[2])
