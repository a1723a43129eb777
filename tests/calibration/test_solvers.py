"""Learning-rate schedules of Adam."""

import pytest

from app.calibration.solvers import Schedule


def test_rate_is_constant_or_decays_by_half_a_cosine():
    steady = Schedule("x", rate=0.1, rounds=4, patience=1)
    cooling = Schedule("x", rate=0.1, rounds=4, patience=1, cooling=True)
    rounds = range(4)
    assert [steady.rate_at(count) for count in rounds] == [0.1] * 4
    half = 0.05 * 2**-0.5
    assert [cooling.rate_at(count) for count in rounds] == pytest.approx(
        [0.1, 0.05 + half, 0.05, 0.05 - half]
    )
