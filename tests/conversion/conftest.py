"""Settings of imports, and random weights that give several labels."""

import pytest
import torch

from app.settings import Settings


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "models").mkdir()
    return Settings(models_dir=tmp_path / "models", device="cpu", threads=1)


@pytest.fixture
def randomize():
    """Return a function that draws the weights of a network, so that its logits are of order 1."""

    def draw(network: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(3)
        for weights in network.parameters():
            fan = max(weights[0].numel(), 1) if weights.ndim > 1 else 1
            if weights.ndim > 1:
                weights.data = torch.randn(weights.shape, generator=generator) * fan**-0.5
            else:
                weights.data += 0.2 * torch.randn(weights.shape, generator=generator)
        return network.eval()

    return draw
