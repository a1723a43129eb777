"""Networks of MMSegmentation 1.2.2, from a configuration and a checkpoint.

mmcv-lite has no compiled operators, so they are replaced by names that raise where they are used:
of the networks imported here none uses them.
"""

import importlib.util
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.conversion.classes import label_table
from app.conversion.extras import import_extra, import_torchvision
from app.conversion.framework_model import FrameworkModel, rescaled
from app.conversion.plain_networks import Options
from app.errors import ArgumentError, ModelError, SetupError
from app.inference.backbone import first_line
from app.inference.checkpoints import read_state_dict
from app.inference.preprocess import Size

ANY_SIZE = ("SegformerHead",)  # other heads and backbones have positions or pools of one size
STRIDE = 32  # of the coarsest features of most backbones
OPERATORS = "mmcv.ops"
MULTIMODAL = "mmpretrain.models.multimodal"


class MissingOperator(nn.Module):
    """A compiled operator of mmcv, which is not installed."""

    def __init__(self, *_arguments: object, **_named: object) -> None:
        raise ModelError(
            f"expected a network without compiled operators of mmcv, got {type(self).__name__}"
        )


def declare_operators() -> None:
    """Add a module `mmcv.ops` whose names are `MissingOperator`s, if mmcv has no compiled ones."""
    if OPERATORS in sys.modules or importlib.util.find_spec("mmcv._ext") is not None:
        return
    operators = ModuleType(OPERATORS)

    def missing(name: str) -> type[MissingOperator]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (MissingOperator,), {})

    operators.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules[OPERATORS] = operators


def declare_multimodal() -> None:
    """Add an empty module for mmpretrain's networks of images and text.

    Configurations import all of `mmpretrain.models` for its ConvNeXt, and these networks need an
    old version of transformers.
    """
    sys.modules.setdefault(MULTIMODAL, ModuleType(MULTIMODAL))


def import_mmseg() -> Any:
    """Import MMSegmentation with its registries filled, and return mmengine; raises SetupError."""
    import_torchvision("mmseg", "mmcv")
    declare_operators()
    declare_multimodal()
    return import_extra("mmseg", "mmengine", "mmseg.models", "mmseg.datasets")


class EncoderDecoderLogits(nn.Module):
    """Compute the decode head's logits on its own grid, without the auxiliary heads."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map [N,3,H,W] to [N,K,h,w]."""
        return self.network.decode_head(self.network.extract_feat(image))  # type: ignore[no-any-return]


def open_mmseg(path: str, weights: Path | None, options: Options) -> FrameworkModel:
    """Build a network of a configuration with the weights of a checkpoint.

    Raises SetupError without MMSegmentation, ArgumentError for files that do not fit, ModelError
    for a kind of network that is not supported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are older than their dependencies
        mmengine = import_mmseg()
        if weights is None:
            raise ArgumentError(f"expected a checkpoint after the configuration {path}, got none")
        try:
            config = mmengine.Config.fromfile(path)
        except ImportError as error:
            raise SetupError(
                f"expected the packages that {path} imports, some of which are those of "
                f"`pip install segcal[mmseg]`, got: {first_line(error)}"
            ) from error
        except Exception as error:  # a configuration is Python code
            raise ArgumentError(
                f"expected a configuration of MMSegmentation, got {path}: {first_line(error)}"
            ) from error
        network = build(config, weights)
    policy, size = read_policy(config, options)
    return FrameworkModel(
        EncoderDecoderLogits(network), policy, read_output(config, weights),
        lambda image: logits_of(network, image), size,
    )  # fmt: skip


def build(config: Any, weights: Path) -> Any:
    """Build a network in evaluation mode, with plain in place of synchronised normalisation."""
    from mmengine.model import revert_sync_batchnorm  # noqa: PLC0415 - an optional extra
    from mmengine.registry import init_default_scope  # noqa: PLC0415
    from mmseg.registry import MODELS  # noqa: PLC0415

    model = config.model
    if model.type != "EncoderDecoder":
        raise ModelError(f"expected an EncoderDecoder, got a {model.type}")
    model.pretrained = model.train_cfg = model.backbone.init_cfg = None
    init_default_scope(config.get("default_scope", "mmseg"))
    network = revert_sync_batchnorm(MODELS.build(model))
    try:
        network.load_state_dict(read_state_dict(weights))
    except RuntimeError as error:
        raise ArgumentError(
            f"expected the weights of {Path(config.filename).name} in {weights.name}, got: {error}"
        ) from error
    return network.eval()


def read_policy(config: Any, options: Options) -> tuple[dict[str, object], Size | None]:
    """Return the card's input table and the only size of the export, None for any."""
    model = config.model
    preprocessor = model.data_preprocessor
    policy: dict[str, object] = {}
    mean, std = list(preprocessor.mean), list(preprocessor.std)
    if not preprocessor.get("bgr_to_rgb", False):  # mmseg reads images as BGR
        policy["channels"] = "bgr"
        mean, std = mean[::-1], std[::-1]
    policy |= rescaled(mean, std, factor=1.0)
    if options.size is not None:
        return policy | {"size": options.size}, options.size
    test = model.test_cfg
    if test.mode == "slide":
        crop = test.crop_size[0], test.crop_size[1]
        windows = {"mode": "slide", "crop": crop, "stride": tuple(test.stride), "blend": "mean"}
        multiple = int(np.gcd.reduce([*crop, *test.stride, STRIDE]))
        return policy | windows | {"multiple_of": multiple}, crop
    if model.decode_head.type in ANY_SIZE:
        return policy, None
    side = preprocessor.get("size") or config.get("crop_size")
    if side is None:
        raise ArgumentError("expected --size H W for a network of one size, got no size for it")
    crop = side[0], side[1]
    return policy | {"mode": "slide", "crop": crop}, crop


def read_output(config: Any, weights: Path) -> dict[str, object]:
    """Return the card's output table: classes of the checkpoint or of the test data set."""
    from mmseg.registry import DATASETS  # noqa: PLC0415 - an optional extra

    loader = config.get("test_dataloader") or config.get("train_dataloader") or {}
    dataset = loader.get("dataset", {})
    content = torch.load(weights, map_location="cpu", weights_only=True)
    meta = content.get("meta", {}) if isinstance(content, Mapping) else {}
    stored = meta.get("dataset_meta") or {}
    names = stored.get("classes") or meta.get("CLASSES")
    kind = DATASETS.get(dataset["type"]) if "type" in dataset else None
    if names is None and kind is not None:
        names = kind.METAINFO.get("classes")
    head = config.model.decode_head
    count = head.get("num_classes") or head.kernel_generate_head.num_classes
    if names is None or len(names) != count:
        names = [f"class {index}" for index in range(count)]
    steps = [*config.get("test_pipeline", []), *config.get("train_pipeline", [])]
    reduced = any(step.get("reduce_zero_label", False) for step in (dataset, *steps))
    return {"reduce_zero_label": reduced, **label_table(names)}


@torch.inference_mode()
def logits_of(network: Any, image: NDArray[np.uint8]) -> Tensor:
    """Compute logits [K,H,W] of uint8 RGB [H,W,3] by mmseg's own inference, but for resizing."""
    from mmseg.structures import SegDataSample  # noqa: PLC0415 - an optional extra

    shape = image.shape[:2]
    sample = SegDataSample(
        metainfo={"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "flip": False}
    )
    bgr = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)
    (result,) = network.test_step({"inputs": [bgr], "data_samples": [sample]})
    return result.seg_logits.data  # type: ignore[no-any-return]
