"""Settings of imports, and random weights that give several labels."""

import pytest
import torch

from app.settings import load_settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("SEGCAL_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("SEGCAL_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setenv("SEGCAL_DEVICE", "cpu")
    monkeypatch.setenv("SEGCAL_THREADS", "1")
    return load_settings()


@pytest.fixture
def randomize():
    """Return a function that draws the weights of a network, so that its logits are of order 1."""

    def draw(network: torch.nn.Module, seed: int = 3, gain: float = 1) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for weights in network.parameters():
            fan = max(weights[0].numel(), 1) if weights.ndim > 1 else 1
            if weights.ndim > 1:
                weights.data = torch.randn(weights.shape, generator=generator) * gain * fan**-0.5
            else:
                weights.data += 0.2 * torch.randn(weights.shape, generator=generator)
        return network.eval()

    return draw
