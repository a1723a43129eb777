"""What an image looks like whatever it shows."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.calibration.methods.contextual.image_statistics import (
    LEAST_CHANGE,
    NUM_STATISTICS,
    compute_statistics,
    row_statistics,
)
from app.imaging.corruptions import corrupt

STREET = Path(__file__).parents[4] / "examples" / "street.jpg"


def street():
    """A rendered street, uint8 [H,W,3]."""
    return np.asarray(Image.open(STREET).convert("RGB"))


def figures(image):
    """Contrast, near, far and bend of colours [H,W,3], after taking means over squares of 4."""
    height, width = (side // 4 * 4 for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
    small = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return compute_statistics(row_statistics(torch.from_numpy(small.transpose(2, 0, 1).copy())))


def test_figures_by_hand():
    """Greys 0, 51, ... 255 from left to right: a fifth from each to the next, and no bend."""
    ramp = torch.arange(0, 256, 51, dtype=torch.uint8).expand(3, 4, 6)
    contrast, near, far, bend = compute_statistics(row_statistics(ramp)).tolist()
    deviation = math.sqrt(35 / 12) / 5  # of 0 to 5
    assert contrast == pytest.approx(math.log(deviation), abs=1e-4)
    assert near == pytest.approx(math.log(0.2 / deviation), abs=1e-4)
    assert far == pytest.approx(math.log(0.8 / deviation), abs=1e-4)
    assert bend == pytest.approx(math.log(LEAST_CHANGE / deviation), abs=1e-3)


def test_a_darker_exposure_lowers_the_contrast_alone():
    contrast, near, far, bend = (figures(street() // 2) - figures(street())).tolist()
    assert contrast == pytest.approx(-math.log(2), abs=0.02)
    assert (near, far) == pytest.approx((0, 0), abs=0.02)
    assert 0 < bend < 0.3  # beside less contrast the least change that is told from none is larger


def test_colours_and_what_lies_over_all_of_it_change_nothing():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 120, (1, 9, 30)).repeat(3, axis=0)
    shifted = grey + 100
    tinted = grey + np.array([40, 0, 0])[:, None, None]
    plain, *others = (
        compute_statistics(row_statistics(torch.from_numpy(seen.astype(np.uint8))))
        for seen in (grey, shifted, tinted)
    )
    for other in others:
        assert torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "figure", "sign"),
    [("fog", 0, -1), ("night", 0, -1), ("contrast", 0, -1), ("blur", 1, -1), ("noise", 3, 1)],
)
def test_what_spoils_a_image_shows(kind, figure, sign):
    clean = figures(street())
    combined_shift = [
        sign * (figures(corrupt(street(), kind, s, 0)) - clean)[figure] for s in (2, 5)
    ]
    assert 0.02 < combined_shift[0] < combined_shift[1]


def test_parts_of_a_image_tell_as_much_as_the_whole():
    image = torch.from_numpy(street().transpose(2, 0, 1).copy())
    whole = row_statistics(image)
    parts = torch.cat([row_statistics(part) for part in image.split(100, dim=1)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_narrow_and_blank_images_have_figures(width):
    blank = torch.zeros(3, 2, width, dtype=torch.uint8)
    found = compute_statistics(row_statistics(blank))
    assert found.shape == (NUM_STATISTICS,)
    assert torch.isfinite(found).all()
