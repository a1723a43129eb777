import pytest
import torch

from app.calibration.methods.contextual.features import (
    MAX_STRIDE,
    MIN_COLUMNS,
    RECEPTIVE_RADIUS,
    compute_features,
    interpolated,
    neighbourhood,
    stride_of,
    subsampled,
)
from app.calibration.top_class import top_log_odds


def noise(*size, seed=0, scale=3.0):
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_features_of_one_pixel_by_hand():
    probabilities = torch.tensor([0.1, 0.6, 0.25, 0.05])
    found = compute_features(probabilities.log()[None, :, None])
    entropy = -(probabilities * probabilities.log()).sum().item()
    odds = torch.logit(torch.tensor(0.6)).item()
    assert found.values[0, :, 0].tolist() == pytest.approx([odds, 0, 0], abs=1e-5)
    assert (found.first.item(), found.second.item()) == (1, 2)
    assert found.log_odds.item() == pytest.approx(odds, abs=1e-5)
    assert found.entropy.item() == pytest.approx(entropy, abs=1e-5)


def test_ties_are_led_by_the_lower_class():
    found = compute_features(torch.zeros(1, 3, 1).log_softmax(1))
    assert (found.first.item(), found.second.item()) == (0, 1)


def test_log_odds_are_exact_where_the_top_probability_is_near_1():
    logs = torch.tensor([[20.0, 0.0, 0.0]]).log_softmax(1)
    assert top_log_odds(logs).item() == pytest.approx(20 - torch.tensor(2.0).log().item(), abs=1e-5)


def test_neighbourhood_by_hand():
    labels = torch.zeros(1, 1, 20, 20, dtype=torch.int64)
    labels[..., 10:] = 1  # one boundary: two columns of cells have one neighbour of another label
    entropy = torch.full((1, 1, 20, 20), 0.25)
    around, changes = neighbourhood(entropy, labels)[0]
    assert around.flatten().tolist() == pytest.approx([0.25] * 400)
    assert changes[5, 9].item() == pytest.approx(2 / 15)
    assert changes[5, 2].item() == pytest.approx(1 / 15)  # the window reaches to column 9
    assert changes[5, 1].item() == 0


def test_a_cell_changes_no_features_beyond_the_receptive_radius():
    logits = noise(1, 3, 41, 41)
    logits[:, 1] += 20
    changed = logits.clone()
    changed[0, 0, 20, 20] += 40  # another label than all around
    values = (compute_features(z.log_softmax(1)).values for z in (changed, logits))
    rows, columns = torch.ne(*values).any(1)[0].nonzero(as_tuple=True)
    expected = 20 - RECEPTIVE_RADIUS, 20 + RECEPTIVE_RADIUS
    assert (int(rows.min()), int(rows.max())) == expected
    assert (int(columns.min()), int(columns.max())) == expected


@pytest.mark.parametrize(
    ("columns", "stride"), [(1, 1), (MIN_COLUMNS, 1), (2 * MIN_COLUMNS, 2), (10**4, MAX_STRIDE)]
)
def test_fine_grids_are_subsampled(columns, stride):
    assert stride_of(torch.empty(1, 2, 1, columns)) == stride


def test_tables_are_not_subsampled():
    assert stride_of(torch.empty(1, 2, 10**4)) == 1


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_interpolation_reproduces_the_subsampled_cells(stride):
    planes = noise(1, 1, 11, 14)
    fine = interpolated(subsampled(planes, stride), (11, 14), stride)
    assert fine.shape == planes.shape
    assert torch.allclose(subsampled(fine, stride), subsampled(planes, stride), atol=1e-5)
