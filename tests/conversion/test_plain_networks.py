"""`torchvision:`, `smp:` and `dino:` imports of small networks with random weights."""

import numpy as np
import pytest
import torch

from app.conversion.extras import import_torchvision
from app.conversion.framework_import import import_framework
from app.conversion.plain_networks import Options, open_dino, open_smp, open_torchvision
from app.errors import ArgumentError, ModelError, SetupError
from app.inference.checkpoints import read_state_dict
from app.inference.model_card import ShortSide
from tests.conversion.checks import check_import

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages and the exporter
SIZE = (64, 96)


def package(name, extra):
    """Import a package, or skip the test."""
    try:
        return import_torchvision(extra, name)
    except SetupError as error:
        pytest.skip(f"needs the extra {extra} (make importers): {error}")


@pytest.fixture
def weights(tmp_path):
    """Return a function that saves tensors by name."""

    def save(state):
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


# torchvision


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_network_of_torchvision_is_imported(name, settings, weights, randomize):
    models = package("torchvision.models", "torchvision")
    auxiliary = {"aux_loss": True} if name.startswith("deeplab") else {}
    network = models.get_model(
        name, weights=None, weights_backbone=None, num_classes=4, **auxiliary
    )
    path = weights(randomize(network).state_dict())
    model = open_torchvision(name, path, Options(mean=(0.5, 0.4, 0.3)))
    made = import_framework(model, "new", {"output": {"classes": four_classes()}}, settings)
    folder = check_import(made)
    card = folder.card
    assert card.input.size == ShortSide(short_side=520)
    assert card.input.mean == (0.5, 0.4, 0.3)
    assert [entry.name for entry in card.output.classes] == ["a", "b", "c", "d"]


def four_classes():
    return [{"name": name, "color": f"#00000{index}"} for index, name in enumerate("abcd")]


def test_unknown_name_and_weights_of_another_network_are_rejected(weights):
    package("torchvision.models", "torchvision")
    with pytest.raises(ArgumentError, match=r"expected one of .*'fcn_resnet50'.*, got resnet18"):
        open_torchvision("resnet18", None, Options())
    path = weights({"classifier.0.bias": torch.zeros(3)})
    with pytest.raises(ArgumentError, match=r"expected weights of a LRASPP in weights\.pth"):
        open_torchvision("lraspp_mobilenet_v3_large", path, Options())


# segmentation_models_pytorch


@pytest.mark.parametrize(("classes", "activation"), [(3, "softmax2d"), (1, "sigmoid")])
def test_network_of_smp_is_imported_without_its_activation(
    classes, activation, settings, tmp_path, randomize
):
    smp = package("segmentation_models_pytorch", "smp")
    network = smp.Unet(
        "resnet18", encoder_weights=None, classes=classes, activation=activation,
        decoder_channels=(32, 16, 16, 8, 8),
    )  # fmt: skip
    randomize(network).save_pretrained(tmp_path / "saved")
    made = import_framework(open_smp(str(tmp_path / "saved"), Options()), "new", {}, settings)
    folder = check_import(made)
    assert folder.num_classes == max(classes, 2)
    assert made.imported.warnings[0].startswith("mean and std are ImageNet's")


# A linear head on DINO


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_linear_head_gets_the_patches_of_the_last_layers(
    kind, settings, tmp_path, weights, randomize
):
    transformers = package("transformers", "hf")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        mlp_ratio=2, image_size=56, patch_size=14, num_register_tokens=2,
    )  # fmt: skip
    backbone = getattr(transformers, f"{kind}Model")(config)
    randomize(backbone).save_pretrained(tmp_path / "saved")
    head = torch.nn.ModuleDict(
        {"bn": torch.nn.BatchNorm2d(32), "conv_seg": torch.nn.Conv2d(32, 4, 1)}
    )
    state = {f"decode_head.{key}": value for key, value in randomize(head).state_dict().items()}
    model = open_dino(str(tmp_path / "saved"), weights(state), Options())
    made = import_framework(model, "new", {}, settings)
    folder = check_import(made)
    policy = folder.card.input
    assert (policy.mode, policy.crop, policy.stride) == ("slide", (56, 56), (42, 42))


def test_head_that_does_not_fit_the_backbone_is_rejected(tmp_path, weights):
    transformers = package("transformers", "hf")
    transformers.Dinov2Config(hidden_size=16).save_pretrained(tmp_path / "saved")
    path = weights({"weight": torch.zeros(4, 20), "bias": torch.zeros(4)})
    with pytest.raises(ArgumentError, match="expected a head on multiples of 16 channels, got 20"):
        open_dino(str(tmp_path / "saved"), path, Options())
    transformers.SegformerConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"expected one of .*, got a network of kind 'segformer'"):
        open_dino(str(tmp_path / "other"), path, Options())


# Files of weights


def test_state_dict_is_read_from_its_usual_forms(weights):
    tensors = {"a.weight": torch.ones(2), "a.bias": torch.zeros(1)}
    for content in (tensors, {"state_dict": tensors, "meta": {"epoch": 3}}, {"model": tensors}):
        found = read_state_dict(weights(content))
        assert {key: value.tolist() for key, value in found.items()} == {
            "a.weight": [1, 1], "a.bias": [0],
        }  # fmt: skip
    assert list(read_state_dict(weights({"module.b": torch.ones(1)}))) == ["b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "expected a state_dict, got weights.pth without tensors by name"),
        (torch.nn.Linear(1, 1), "expected a state_dict, as of torch.save"),
        (np.zeros(2), "expected a state_dict, as of torch.save"),
    ],
)
def test_file_without_tensors_or_with_objects_is_rejected(weights, content, reason):
    with pytest.raises(ArgumentError, match=reason):
        read_state_dict(weights(content))
