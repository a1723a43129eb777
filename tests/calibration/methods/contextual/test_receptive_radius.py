import torch

from app.calibration.methods.contextual.features import FARTHEST, context_of
from app.calibration.methods.contextual.position_prior import BANDS


def test_cells_beyond_the_reach_are_not_felt():
    logits = 2 * torch.randn(1, 3, 41, 41, generator=torch.Generator().manual_seed(0))
    logits[:, 1] += 20
    changed = logits.clone()
    changed[0, 0, 20, 20] += 40  # another label than all around
    features = (
        context_of(part.log_softmax(1), torch.ones(()), torch.zeros(3, BANDS)).features
        for part in (changed, logits)
    )
    felt = torch.ne(*features).any(1)[0]
    rows, columns = (axis.tolist() for axis in felt.nonzero(as_tuple=True))
    assert (min(rows), max(rows)) == (min(columns), max(columns)) == (20 - FARTHEST, 20 + FARTHEST)
