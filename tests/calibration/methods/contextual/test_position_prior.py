"""Where on images classes lie: shares by band, and how likely a label is in its place."""

import pytest
import torch

from app.calibration.dataset import IGNORE, InMemory, LabelledImage
from app.calibration.methods.contextual.position_prior import (
    BANDS,
    EVEN,
    bands_of,
    fit_position_prior,
    position_log_likelihood,
)


def image(labels):
    return LabelledImage(torch.zeros(3, *labels.shape), labels)


def test_bands_divide_any_height():
    assert torch.equal(bands_of(BANDS), torch.arange(BANDS))
    assert bands_of(2 * BANDS).bincount().tolist() == [2] * BANDS
    assert bands_of(3).tolist() == [0, 10, 21]
    assert bands_of(1).tolist() == [0]


def test_layout_tells_the_upper_half_from_the_lower():
    labels = torch.zeros(2 * BANDS, 5, dtype=torch.int64)
    labels[BANDS:] = 1
    fractions = fit_position_prior(InMemory(3, [image(labels)]), [0]).exp()
    assert torch.allclose(fractions.sum(0), torch.ones(BANDS))
    most, least = 1 - EVEN + EVEN / 3, EVEN / 3
    for band, expected in ((0, [most, least, least]), (BANDS - 1, [least, most, least])):
        assert fractions[:, band].tolist() == pytest.approx(expected, abs=1e-3)
    # The border is smooth, and symmetric about the middle.
    assert fractions[0, BANDS // 2 - 1] == pytest.approx(fractions[1, BANDS // 2].item())
    assert 0.5 < fractions[0, BANDS // 2 - 1] < 0.9


def test_layout_is_of_the_chosen_images_and_of_labelled_pixels():
    labels = torch.full((BANDS, 4), IGNORE)
    labels[:, 0] = 2
    data = InMemory(3, [image(torch.zeros(BANDS, 4, dtype=torch.int64)), image(labels)])
    fractions = fit_position_prior(data, [1]).exp()
    assert fractions[2].tolist() == pytest.approx([1 - EVEN + EVEN / 3] * BANDS, abs=1e-3)


@pytest.mark.parametrize("labelled", [slice(90, None), slice(0, 0), slice(0, 1)])
def test_bands_far_from_every_label_are_even(labelled):
    labels = torch.full((96, 5), IGNORE)
    labels[labelled] = 1
    fractions = fit_position_prior(InMemory(3, [image(labels)]), [0]).exp()
    assert torch.allclose(fractions.sum(0), torch.ones(BANDS))
    assert fractions[:, BANDS // 2].tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_plausibility_by_hand():
    position_prior = torch.zeros(3, BANDS)
    position_prior[0, : BANDS // 2], position_prior[0, BANDS // 2 :] = -1.0, -3.0
    position_prior[1] = -2.0
    first = torch.tensor([0, 1, 0, 1]).view(1, 1, 4, 1)
    likely, above = position_log_likelihood(position_prior, first, 1 - first)[0, :, :, 0].tolist()
    assert likely == [-1, -2, -3, -2]
    assert above == [1, -1, -1, 1]


def test_tables_have_no_place():
    first = torch.zeros(2, 1, 7, dtype=torch.int64)
    assert (
        position_log_likelihood(torch.full((3, BANDS), -1.0), first, first + 1).tolist()
        == [[[0.0] * 7] * 2] * 2
    )
