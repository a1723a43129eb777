"""Networks of other frameworks: what an import needs of them, and their export to ONNX."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.conversion.extras import import_extra
from app.conversion.quantize import remove_metadata
from app.errors import ModelError
from app.inference.backbone import first_line, open_backbone
from app.inference.preprocess import Size

OPSET = 18
TOLERANCE = 1e-3  # largest absolute difference of logits, torch against ONNX Runtime
MULTIPLE = 32  # of the sides of an export for any size
EXAMPLE_SIZE = (64, 96)  # of an export for any size
SECOND_SIZE = (192, 128)  # at which an export for any size is compared as well


@dataclass(frozen=True)
class FrameworkModel:
    """A network of another framework, the tables of its card, and its own logits of an image.

    `network` maps images float32 [N,3,H,W] to logits [N,K,h,w], or to a tuple with the tensors
    that `outputs` names. `reference` computes logits [K,h,w] of uint8 RGB [H,W,3] with the
    framework's own preprocessing and network. `size` is the only height and width that the export
    is made for, None for any. `notes` are sentences for the user.
    """

    network: nn.Module
    input: Mapping[str, object]
    output: Mapping[str, object]
    reference: Callable[[NDArray[np.uint8]], Tensor]
    size: Size | None
    outputs: tuple[str, ...] = ("logits",)
    notes: tuple[str, ...] = ()
    multiple: int = MULTIPLE


def export_network(model: FrameworkModel, path: Path) -> float:
    """Write a network as ONNX; return the largest difference of its outputs from torch's.

    It is compared at its only size, or at two sizes. Raises ModelError where the exporter fails
    or the difference is above TOLERANCE.
    """
    onnx = import_extra("train", "onnx", "onnxscript")
    network = model.network.eval()
    first = model.size or EXAMPLE_SIZE
    rows, columns = (torch.export.Dim(side, min=1, max=2048) for side in ("rows", "columns"))
    shapes = {0: torch.export.Dim("batch"), 2: model.multiple * rows, 3: model.multiple * columns}
    try:
        with warnings.catch_warnings(), torch.inference_mode(), quiet_log():
            warnings.simplefilter("ignore")  # of the exporter's own deprecations
            program = torch.onnx.export(
                network,
                (torch.zeros(1 if model.size else 2, 3, *first),),
                input_names=["image"],
                output_names=list(model.outputs),
                dynamic_shapes=None if model.size else (shapes,),
                opset_version=OPSET,
                custom_translation_table=missing_translations(),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many types
        advice = "" if model.size else "; --size H W exports it for one size"
        raise ModelError(
            f"expected a network that torch.onnx.export takes, got: "
            f"{first_line(cause_of(error))}{advice}"
        ) from error
    assert program is not None  # noqa: S101 - the exporter returns None only for a file name
    program.save(str(path), include_initializers=True, external_data=False)
    onnx.save(remove_metadata(onnx.load(path)), path)
    sizes = (first,) if model.size else (first, SECOND_SIZE)
    return max(difference(network, path, size) for size in sizes)


def missing_translations() -> dict[Any, Callable[..., Any]]:
    """Return ONNX forms of operators that the exporter has none for, by torch's operator."""
    operators = import_extra("train", "onnxscript").opset18
    integer, boolean = 6, 9  # ONNX's types int32 and bool

    def is_all_true(values: Any) -> Any:  # noqa: ANN401 - a symbolic value, of OneFormer's masks
        smallest = operators.ReduceMin(operators.Cast(values, to=integer), keepdims=0)
        return operators.Cast(smallest, to=boolean)

    return {torch.ops.aten._is_all_true.default: is_all_true}  # noqa: SLF001 - the operator's name


def cause_of(error: BaseException) -> Exception:
    """Return the first error of a chain: the exporter's own says which of its steps failed."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error if isinstance(error, Exception) else Exception(str(error))


@contextmanager
def quiet_log() -> Iterator[None]:
    """Silence the exporter's log for a block."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


@torch.inference_mode()
def difference(network: nn.Module, path: Path, size: Size) -> float:
    """Return the largest difference of an ONNX file's outputs from torch's for noise of a size.

    Raises ModelError where it is above TOLERANCE.
    """
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    outputs = network(image)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    found = open_backbone(path, "cpu", 1).outputs(image.numpy()).values()
    worst = max(float(np.abs(a.numpy() - b).max()) for a, b in zip(expected, found, strict=True))
    if not worst <= TOLERANCE:
        raise ModelError(
            f"expected an ONNX file within {TOLERANCE:g} of torch's outputs at "
            f"{size[0]}x{size[1]}, got a difference of {worst:.3g}"
        )
    return worst


def smooth_image(size: Size) -> NDArray[np.uint8]:
    """Return an image of smooth random colours: uint8 RGB [H,W,3].

    Labels of white noise depend on the last bit of a resized image, those of smooth colours do not.
    """
    height, width = size
    noise = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * smooth[0]).round().byte().permute(1, 2, 0).contiguous().numpy()


def rescaled(
    mean: Sequence[float], std: Sequence[float], factor: float = 1 / 255
) -> dict[str, tuple[float, ...]]:
    """Return a card's mean and std for networks that get (factor x - mean) / std of x in 0..255.

    On the card's scale of 0..1 both are divided by 255 times the factor, to seven digits.
    """
    scale = 255 * factor
    return {
        "mean": tuple(float(f"{value / scale:.7g}") for value in mean),
        "std": tuple(float(f"{value / scale:.7g}") for value in std),
    }
