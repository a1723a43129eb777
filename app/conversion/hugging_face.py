"""Networks of Hugging Face's transformers, with their configurations and image processors.

Dense networks give logits at their own grid; mask classifiers are in `mask_classifiers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from app.conversion.classes import label_table
from app.conversion.extras import import_torchvision
from app.conversion.framework_model import MULTIPLE, FrameworkModel, rescaled
from app.conversion.mask_classifiers import MaskClassifier, log_scores, without_random_masks
from app.errors import ArgumentError, ModelError
from app.inference.backbone import first_line
from app.inference.preprocess import Size

ANY_SIZE = ("segformer",)
DENSE = (
    *ANY_SIZE,
    "mobilenet_v2",
    "upernet",
    "dpt",
    "beit",
    "data2vec-vision",
    "mobilevit",
    "mobilevitv2",
)
MASKS = ("mask2former", "oneformer", "eomt", "eomt_dinov3")
RESAMPLES = {2: "bilinear", 3: "bicubic", 4: "area"}  # Pillow's numbers
TASK = "the task is semantic"  # OneFormer's prompt


def open_hugging_face(path: str, size: Size | None = None) -> FrameworkModel:
    """Load a network of transformers from a folder, or from the hub by its id.

    `size` overrides the processor's. Raises SetupError without transformers, ArgumentError where
    nothing can be loaded from `path`, ModelError for a network or processor that is not supported.
    """
    transformers = import_torchvision("hf", "transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(
            f"expected a folder or an id of a network of transformers, got {path}: "
            f"{first_line(error)}"
        ) from error
    kind = config.model_type
    if kind in DENSE:
        network = load(transformers.AutoModelForSemanticSegmentation, path)
        return open_dense(network, processor, size)
    if kind in MASKS:
        network = load(transformers.AutoModelForUniversalSegmentation, path)
        tokens = None
        if kind == "oneformer":
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            length = config.task_seq_len
            tokens = tokenizer(
                [TASK], padding="max_length", truncation=True, max_length=length,
                return_tensors="pt",
            )["input_ids"]  # fmt: skip
        return open_masks(network, processor, size, tokens)
    raise ModelError(f"expected one of {sorted((*DENSE, *MASKS))}, got a network of kind {kind!r}")


def load(kind: Any, path: str, **options: object) -> Any:
    """Load weights in single precision; raises ArgumentError where some are missing.

    Attention is that of separate matrix products: the exporter fails on the layout of the results
    of the fused one.
    """
    network, report = kind.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
    )
    if missing := sorted(report["missing_keys"]):
        raise ArgumentError(
            f"expected the weights of a whole {kind.__name__} in {path}, got none for "
            f"{len(missing)} of its tensors, as {missing[0]}"
        )
    return network.eval()


class DenseLogits(nn.Module):
    """Compute logits on a network's own grid; UPerNet's without its upsampling to the image."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.is_upernet = network.config.model_type == "upernet"

    def forward(self, image: Tensor) -> Tensor:
        """Map [N,3,H,W] to [N,K,h,w]."""
        if self.is_upernet:
            features = self.network.backbone(image).feature_maps
            return self.network.decode_head(features)  # type: ignore[no-any-return]
        return self.network(pixel_values=image).logits  # type: ignore[no-any-return]


def open_dense(network: Any, processor: Any, size: Size | None) -> FrameworkModel:
    """Return a network that computes a logit for each class and cell."""
    kind = network.config.model_type
    policy, notes = read_policy(processor, size, any_size=kind in ANY_SIZE)
    fixed = policy.get("size")
    uneven = isinstance(fixed, tuple) and any(side % MULTIPLE for side in fixed)
    only = None
    if kind not in ANY_SIZE or uneven:
        only = only_size(policy, getattr(network.config, "image_size", None))

    @torch.inference_mode()
    def reference(image: NDArray[np.uint8]) -> Tensor:
        logits = network(pixel_values=prepared(processor, policy, image)).logits
        if kind == "upernet":  # upsampled to the input by the network, then to the image
            logits = F.interpolate(logits, image.shape[:2], mode="bilinear")
        return logits[0]  # type: ignore[no-any-return]

    return FrameworkModel(
        DenseLogits(network), policy, read_output(network.config, processor), reference, only,
        notes=notes,
    )  # fmt: skip


def open_masks(
    network: Any,
    processor: Any,
    size: Size | None,
    tokens: Tensor | None,
) -> FrameworkModel:
    """Return a mask classifier; its scores are those of the processor's own postprocessing."""
    config = network.config
    side = getattr(config, "image_size", None) if config.model_type.startswith("eomt") else None
    policy, notes = read_policy(processor, size)
    only = only_size(policy, side)
    if policy.get("mode") != "slide":
        policy["size"] = only
    grid = None
    if config.model_type == "mask2former":
        grid = (384, 384)  # as its processor's
        if policy.get("mode") == "slide":
            raise ArgumentError(
                f"expected --size H W, as Mask2Former's masks are scored on a grid of {grid[0]}x"
                f"{grid[1]} for any image, got a processor that keeps the aspect ratio"
            )
    elif config.model_type.startswith("eomt"):
        grid = only
    if hasattr(network, "attn_mask_probs"):
        without_random_masks(network)

    @torch.inference_mode()
    def reference(image: NDArray[np.uint8]) -> Tensor:
        inputs = {"pixel_values": prepared(processor, policy, image)}
        if tokens is not None:
            inputs["task_inputs"] = tokens
        outputs = network(**inputs)
        options: dict[str, Any] = {}
        if config.model_type.startswith("eomt"):  # one patch, of the whole image
            sides = {"shortest_edge": only[0], "longest_edge": only[1]}
            options = {"target_sizes": [only], "size": sides}
        (result,) = processor.post_process_semantic_segmentation(
            outputs, return_segmentation_scores=True, **options
        )
        return log_scores(result.segmentation_scores)

    return FrameworkModel(
        MaskClassifier(network, grid, tokens), policy, read_output(config, processor), reference,
        only, outputs=("logits", "mass"), notes=notes,
    )  # fmt: skip


def prepared(
    processor: Any,
    policy: Mapping[str, object],
    image: NDArray[np.uint8],
) -> Tensor:
    """Preprocess uint8 RGB [H,W,3] by a processor, at the card's size: float32 [1,3,h,w]."""
    options: dict[str, object] = {"do_pad": False}
    size = policy.get("size")
    if isinstance(size, tuple):
        options["size"] = {"height": size[0], "width": size[1]}
    if getattr(processor, "do_center_crop", None):
        options["do_center_crop"] = False
    for option in ("keep_aspect_ratio", "do_split_image"):
        if getattr(processor, option, None):
            options[option] = False
    if policy.get("mode") == "slide":
        options["do_resize"] = False
    inputs = processor(images=image, return_tensors="pt", **options)
    values = inputs["pixel_values"]
    return values if isinstance(values, Tensor) else torch.stack(list(values))


def read_policy(
    processor: Any, size: Size | None, *, any_size: bool = False
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the card's input table of an image processor, and notes on what differs from it.

    A short side becomes windows of a square unless the network takes any size.
    Raises ModelError for a filter of resizing that a card has no name for.
    """
    policy: dict[str, object] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if getattr(processor, "do_normalize", None):
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        policy |= rescaled(processor.image_mean, processor.image_std, factor)
    if getattr(processor, "do_flip_channel_order", None):
        policy["channels"] = "bgr"
        # The processor normalises after the flip, the service's card is in RGB.
        policy |= {key: tuple(reversed(policy[key])) for key in ("mean", "std")}  # type: ignore[call-overload]
    notes: list[str] = []
    if not processor.do_resize:
        return policy | ({"size": size} if size else {}), ()
    resample = int(processor.resample)
    if resample not in RESAMPLES:
        raise ModelError(f"expected a filter of {list(RESAMPLES.values())}, got {resample}")
    policy["resample"] = RESAMPLES[resample]
    sides = dict(processor.size)
    if getattr(processor, "do_center_crop", None):
        sides = dict(processor.crop_size)
        notes.append("the processor's centre crop is not applied, so that every pixel gets a label")
    if size is not None:
        policy["size"] = size
    elif sides.get("height") and sides.get("width"):
        policy["size"] = sides["height"], sides["width"]
    else:
        short = sides["shortest_edge"]
        policy["size"] = {"short_side": short}
        if any_size:
            return policy, tuple(notes)
        policy |= {"mode": "slide", "crop": (short, short)}
        notes.append(
            f"windows of {short}x{short} are cut from images with a short side of {short}; "
            f"--size H W resizes the whole image instead"
        )
    return policy, tuple(notes)


def only_size(policy: Mapping[str, object], side: int | Sequence[int] | None) -> Size:
    """Return the size for which a network is exported: the crop, the card's size or its own."""
    for key in ("crop", "size"):
        value = policy.get(key)
        if isinstance(value, tuple):
            return value
    if side is None:
        raise ArgumentError("expected --size H W for a network of one size, got no size for it")
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def read_output(config: Any, processor: Any) -> dict[str, object]:
    """Return the card's output table: names by class id, and whether labels are reduced."""
    names = [config.id2label[index].strip() for index in sorted(config.id2label)]
    reduced = getattr(processor, "do_reduce_labels", None) or getattr(processor, "reduce_labels", 0)
    return {"reduce_zero_label": bool(reduced), **label_table(names)}
