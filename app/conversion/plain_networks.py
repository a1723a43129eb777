"""Networks with plain preprocessing: torchvision, segmentation_models_pytorch, and DINO heads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from app.conversion.classes import label_table
from app.conversion.extras import import_torchvision
from app.conversion.framework_model import FrameworkModel
from app.conversion.hugging_face import load
from app.errors import ArgumentError, ModelError
from app.inference.backbone import first_line
from app.inference.checkpoints import read_state_dict
from app.inference.preprocess import Size

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
DINO = {
    "dinov2": "Dinov2Backbone",
    "dinov2_with_registers": "Dinov2WithRegistersBackbone",
    "dinov3_vit": "DINOv3ViTBackbone",
}
RESIZE = 520  # short side of torchvision's own evaluation


@dataclass(frozen=True)
class Options:
    """Preprocessing that the user gave for a framework that does not store it; None: not given."""

    size: Size | None = None
    mean: Triple | None = None
    std: Triple | None = None

    def policy(self) -> dict[str, object]:
        """Return the card's input table, with ImageNet's mean and std unless others were given."""
        policy: dict[str, object] = {
            "mean": self.mean or IMAGENET_MEAN, "std": self.std or IMAGENET_STD,
        }  # fmt: skip
        return policy | ({"size": self.size} if self.size else {})


def normalised(image: NDArray[np.uint8], policy: Mapping[str, Any]) -> Tensor:
    """Resize uint8 RGB [H,W,3] to a fixed or short-side size, if any: float32 [1,3,h,w]."""
    size = policy.get("size")
    if isinstance(size, Mapping):
        scale = size["short_side"] / min(image.shape[:2])
        size = round(image.shape[0] * scale), round(image.shape[1] * scale)
    if size is not None:
        image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(policy[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (planes - mean) / std


def reference_of(
    network: Callable[[Tensor], Tensor], policy: Mapping[str, Any]
) -> Callable[[NDArray[np.uint8]], Tensor]:
    """Return a function that computes a network's logits at an image's size."""

    @torch.inference_mode()
    def reference(image: NDArray[np.uint8]) -> Tensor:
        logits = network(normalised(image, policy))
        return F.interpolate(logits, image.shape[:2], mode="bilinear")[0]

    return reference


# torchvision


class TorchvisionLogits(nn.Module):
    """Compute the logits of the entry `out` before their upsampling."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier
        self.has_two_levels = type(network).__name__ == "LRASPP"

    def forward(self, image: Tensor) -> Tensor:
        """Map [N,3,H,W] to [N,K,h,w]."""
        features = self.backbone(image)
        return self.classifier(features if self.has_two_levels else features["out"])  # type: ignore[no-any-return]


def open_torchvision(name: str, weights: Path | None, options: Options) -> FrameworkModel:
    """Build a segmentation network of torchvision, with its own weights or a state_dict.

    Raises SetupError without torchvision, ArgumentError for a name or weights that do not fit.
    """
    models = import_torchvision("torchvision", "torchvision.models")
    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise ArgumentError(f"expected one of {known}, got {name}")
    default = models.get_model_weights(name).DEFAULT
    if weights is None:
        network, names = get_weighted(models, name, default), default.meta["categories"]
    else:
        state = read_state_dict(weights)
        network = build_torchvision(models, name, state, weights)
        names = [f"class {index}" for index in range(classes_of(state, "classifier."))]
    policy: dict[str, Any] = {"size": {"short_side": RESIZE}, "multiple_of": 8, **options.policy()}
    network.eval()
    reference = reference_of(lambda image: network(image)["out"], policy)
    return FrameworkModel(
        TorchvisionLogits(network), policy, label_table(names), reference, options.size, multiple=8
    )


def get_weighted(models: Any, name: str, default: Any) -> Any:
    """Return a network of torchvision with its own weights, downloaded if they are not cached."""
    try:
        return models.get_model(name, weights=default)
    except OSError as error:
        raise ArgumentError(
            f"expected the weights of {name} from {default.url}, or a file of weights after the "
            f"name, got: {first_line(error)}"
        ) from error


def build_torchvision(models: Any, name: str, state: dict[str, Tensor], path: Path) -> Any:
    """Build a network of torchvision with the weights of a state_dict."""
    auxiliary = {"aux_loss": True} if any(key.startswith("aux_") for key in state) else {}
    network = models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes_of(state, "classifier."),
        **auxiliary,
    )  # fmt: skip
    load_weights(network, state, path)
    return network


def classes_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of channels of the last bias of a module; raises ArgumentError."""
    biases = [value for key, value in state.items() if key.startswith(prefix) and "bias" in key]
    if not biases:
        raise ArgumentError(f"expected weights of {prefix}*, got {sorted(state)[:3]}")
    return len(biases[-1])


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state_dict; raises ArgumentError where it is not that of the network."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ArgumentError(
            f"expected weights of a {type(network).__name__} in {path.name}, got: {error}"
        ) from error


# segmentation_models_pytorch


class MaskLogits(nn.Module):
    """Compute the masks alone, where a network has a classification head too."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map [N,3,H,W] to [N,K,H,W]."""
        outputs = self.network(image)
        return outputs[0] if isinstance(outputs, tuple) else outputs  # type: ignore[no-any-return]


def open_smp(path: str, options: Options) -> FrameworkModel:
    """Load a network that segmentation_models_pytorch's `save_pretrained` wrote.

    Raises SetupError without the package, ArgumentError where nothing can be loaded from `path`.
    """
    smp = import_torchvision("smp", "segmentation_models_pytorch")
    try:
        network = smp.from_pretrained(path).eval()
    except Exception as error:  # OSError, errors of the hub, of JSON and of weights
        raise ArgumentError(
            f"expected a folder of segmentation_models_pytorch's save_pretrained, or an id, "
            f"got {path}: {first_line(error)}"
        ) from error
    head = network.segmentation_head
    channels = head[0].out_channels
    head[-1] = nn.Identity()  # the activation
    policy = options.policy()
    logits = MaskLogits(network)
    names = [f"class {index}" for index in range(max(channels, 2))]
    notes: tuple[str, ...] = ()
    if options.mean is None or options.std is None:
        notes = ("mean and std are ImageNet's, as of most encoders; give others by --mean, --std",)
    return FrameworkModel(
        logits, policy, label_table(names), reference_of(logits, policy), options.size, notes=notes
    )


# A linear head on DINO's features


class LinearHead(nn.Module):
    """Compute logits by a 1x1 convolution of a backbone's last feature maps.

    The features of the class and register tokens are dropped. The maps of several layers are
    joined; batch normalisation comes first where the head has one.
    """

    def __init__(self, backbone: Any, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        plain = {key.rpartition("decode_head.")[2]: value for key, value in state.items()}
        (weight,) = (v for k, v in plain.items() if k.endswith("weight") and not k.startswith("bn"))
        (bias,) = (v for k, v in plain.items() if k.endswith("bias") and not k.startswith("bn"))
        self.classifier = nn.Conv2d(weight.shape[1], len(weight), 1)
        self.classifier.load_state_dict(
            {"weight": weight.flatten(1)[..., None, None], "bias": bias}
        )
        norm = {key[3:]: value for key, value in plain.items() if key.startswith("bn.")}
        self.norm: nn.Module = nn.BatchNorm2d(weight.shape[1]) if norm else nn.Identity()
        self.norm.load_state_dict(norm)

    def forward(self, image: Tensor) -> Tensor:
        """Map [N,3,H,W] to [N,K,H/p,W/p], where p is the patch size."""
        features = torch.cat(self.backbone(image).feature_maps, dim=1)
        return self.classifier(self.norm(features))  # type: ignore[no-any-return]


def open_dino(path: str, weights: Path | None, options: Options) -> FrameworkModel:
    """Join a DINOv2 or DINOv3 backbone of transformers with a linear head from a state_dict.

    The head's tensors are a weight [K,C] or [K,C,1,1] and a bias, and `bn.*` where it normalises,
    with any prefix `decode_head.`. C is a multiple of the backbone's width: so many last layers
    are joined. Raises SetupError, ArgumentError and ModelError.
    """
    transformers = import_torchvision("hf", "transformers")
    if weights is None:
        raise ArgumentError(f"expected a file with the weights of a linear head after {path}")
    state = read_state_dict(weights)
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"expected a backbone, got {path}: {first_line(error)}") from error
    if config.model_type not in DINO:
        raise ModelError(
            f"expected one of {list(DINO)}, got a network of kind {config.model_type!r}"
        )
    channels = max(value.shape[1] for value in state.values() if value.ndim > 1)
    layers, rest = divmod(channels, config.hidden_size)
    if rest or not layers:
        raise ArgumentError(
            f"expected a head on multiples of {config.hidden_size} channels, got {channels}"
        )
    last = range(config.num_hidden_layers - layers + 1, config.num_hidden_layers + 1)
    features = [f"stage{index}" for index in last]
    backbone = load(getattr(transformers, DINO[config.model_type]), path, out_features=features)
    network = LinearHead(backbone, state).eval()
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    patch = config.patch_size
    size = options.size or (side // patch * patch,) * 2
    if any(length % patch for length in size):
        raise ArgumentError(f"expected --size in multiples of {patch}, got {size[0]}x{size[1]}")
    policy: dict[str, Any] = {**options.policy(), "multiple_of": patch}
    if options.size is None:
        policy |= {"size": {"short_side": size[0]}, "mode": "slide", "crop": size}
    names = [f"class {index}" for index in range(network.classifier.out_channels)]

    @torch.inference_mode()
    def reference(image: NDArray[np.uint8]) -> Tensor:
        """Compute logits from the tokens of the hidden states, apart from the feature maps."""
        inputs = normalised(image, policy)
        states = backbone(inputs, output_hidden_states=True).hidden_states
        height, width = (length // patch for length in size)
        tokens = torch.cat(
            [backbone.layernorm(states[index])[:, -height * width :] for index in last]
            if hasattr(backbone, "layernorm")
            else [backbone.norm(states[index])[:, -height * width :] for index in last],
            dim=2,
        )
        maps = tokens.transpose(1, 2).reshape(1, -1, height, width)
        return network.classifier(network.norm(maps))[0]  # type: ignore[no-any-return]

    return FrameworkModel(network, policy, label_table(names), reference, size)
