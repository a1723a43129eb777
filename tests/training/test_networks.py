"""The project's networks: shapes, and files that keep them."""

import pytest
import torch

from training.networks import KINDS, MULTIPLE_OF, Architecture, open_network, save_network

STRIDES = {"pyramid": 2, "segformer": 4, "unet": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_the_stride_of_the_network(kind):
    height, width = 2 * MULTIPLE_OF, 3 * MULTIPLE_OF
    network = Architecture(kind, 5, widths=(8, 8, 8, 8)).build().eval()
    logits = network(torch.rand(2, 3, height, width))
    assert logits.shape == (2, 5, height // STRIDES[kind], width // STRIDES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_computes_the_same_logits(kind, tmp_path):
    torch.manual_seed(0)
    architecture = Architecture(kind, 3, widths=(8, 8, 8, 8))
    network = architecture.build().eval()
    save_network(architecture, network, tmp_path / "network.pt")
    image = torch.rand(1, 3, MULTIPLE_OF, MULTIPLE_OF)
    assert torch.equal(open_network(tmp_path / "network.pt")(image), network(image))


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.pt"):
        open_network(tmp_path / "absent.pt")
