"""The project's networks: shapes, and files that keep them."""

import numpy as np
import pytest
import torch

from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from app.settings import load_settings
from tests.factories.models import write_card
from tests.factories.service import served_mask
from training.export import export, largest_difference
from training.networks import KINDS, MULTIPLE_OF, Architecture, open_network, save_network
from training.networks.pyramid import PyramidNet

STRIDES = {"pyramid": 2, "convnext-pyramid": 2, "segformer": 4, "unet": 1}


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


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's exporter
def test_a_pyramid_on_convnext_is_served_with_the_logits_of_torch(tmp_path):
    torch.manual_seed(0)
    network = Architecture("convnext-pyramid", 3, widths=(8, 8, 8, 8)).build().eval()
    assert isinstance(network, PyramidNet)
    for name, weights in network.named_parameters():
        if name.endswith("scale"):  # of blocks, which begin as the identity
            torch.nn.init.constant_(weights, 0.5)
    folder = tmp_path / "models" / "convnext"
    folder.mkdir(parents=True)
    export(network, folder / "model.onnx")
    assert largest_difference(network, folder / "model.onnx") <= 1e-3
    write_card(folder, num_classes=3, multiple_of=8)
    predictor = open_predictor(read_model_folder(folder), "cpu", 1)
    image = np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8)
    planes, _ = predictor.prepare(image)
    with torch.inference_mode():
        expected = network(planes)
    grid = predictor.grid(predictor.prepare_windows(image))
    torch.testing.assert_close(grid, expected, atol=1e-3, rtol=0)
    upsampled = torch.nn.functional.interpolate(expected, planes.shape[2:], mode="bilinear")
    labels = upsampled[0, :, : image.shape[0], : image.shape[1]].argmax(0).numpy()
    assert len(np.unique(labels)) > 1
    settings = load_settings(
        models_dir=folder.parent, artifacts_dir=tmp_path / "artifacts", device="cpu", threads=1
    )
    assert (served_mask(settings, image) == labels).mean() >= 0.999
