"""Quantise an ONNX model to int8 by ONNX Runtime's own tools: static, QDQ, per channel.

Ranges of activations are computed from images after the model's own preprocessing. The last
convolution and the nodes behind it stay in float: logits of eight bits would limit confidence to
eight bits.

Weights have seven bits, -64 to 64. Processors without VNNI (before Cascade Lake and Zen 4) add
products of unsigned activations and signed weights in pairs of 16 bits, which saturate: with eight
bits 2 * 255 * 127 > 32767, with seven 2 * 255 * 64 < 32767. The logits are then the same on both
kinds of processor (`make processors`).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.datasets.images import read_image
from app.errors import ModelError, SetupError
from app.inference.predictor import Predictor

if TYPE_CHECKING:
    import onnx

Ranges = Literal["minmax", "entropy", "percentile"]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Inputs:
    """The network's inputs for a list of images: a calibration data reader of ONNX Runtime."""

    def __init__(
        self, predictor: Predictor, input_name: str, images: Sequence[Path], max_pixels: int
    ) -> None:
        self._predictor, self._name = predictor, input_name
        self._images, self._max_pixels = images, max_pixels
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restart the iteration with images [start_index, end_index)."""
        self._left = list(self._images[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next input by its name, or None after the last."""
        if not self._left:
            return None
        scaling = self._predictor.folder.card.input.scaling
        image = read_image(self._left.pop(0), self._max_pixels, scaling)
        return {self._name: self._predictor.first_window(image).numpy()}


def quantize_model(
    predictor: Predictor, images: Sequence[Path], target: Path, ranges: Ranges, max_pixels: int
) -> None:
    """Write a model's int8 file to `target`, with ranges from `images`.

    Raises SetupError without the optional packages, ModelError for a model that is not ONNX or
    cannot be quantised.
    """
    onnx, tools, preprocessed = import_tools()
    source = predictor.folder.path
    if source.suffix != ".onnx":
        raise ModelError(f"{predictor.folder.card.name}: expected an ONNX file, got {source.name}")
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        try:
            preprocessed(source, prepared, skip_symbolic_shape=True)
            network = onnx.load(prepared)
            tools.quantize_static(
                prepared,
                target,
                Inputs(predictor, network.graph.input[0].name, images, max_pixels),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                reduce_range=True,  # seven bits
                calibrate_method=range_methods(tools)[ranges],
                nodes_to_exclude=find_last_nodes(network.graph),
                extra_options={"CalibStridedMinMax": 1},  # one image's activations at a time
            )
        except Exception as error:  # the tools raise errors of many types
            raise ModelError(
                f"{predictor.folder.card.name}: expected a model that can be quantized, "
                f"got: {error}"
            ) from error
        quantized = remove_metadata(onnx.load(target))
    onnx.save(quantized, target)


def import_tools() -> tuple[Any, Any, Any]:
    """Import onnx, ONNX Runtime's quantization and its preprocessing; raises SetupError."""
    try:
        import onnx  # noqa: PLC0415 - an optional extra
        from onnxruntime import quantization  # noqa: PLC0415
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415
    except ImportError as error:
        raise SetupError(
            f"expected the extra packages of `pip install segcal[quantize]`, got: {error}"
        ) from error
    return onnx, quantization, quant_pre_process


def range_methods(tools: Any) -> dict[str, Any]:  # noqa: ANN401 - the tools have no types
    """Return the tools' methods for ranges of activations by name."""
    kinds = tools.CalibrationMethod
    return {"minmax": kinds.MinMax, "entropy": kinds.Entropy, "percentile": kinds.Percentile}


def find_last_nodes(graph: "onnx.GraphProto") -> list[str]:
    """List the names of the nodes from the outputs back to the last with weights, inclusive."""
    producers = {output: node for node in graph.node for output in node.output}
    pending, names = [output.name for output in graph.output], []
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.name in names:
            continue
        names.append(node.name)
        if node.op_type not in WEIGHTED:
            pending += node.input
    return names


def remove_metadata(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Remove metadata and comments, in which exporters and tools record paths of their machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    parts = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (graph, *parts):
        del part.metadata_props[:]
        part.doc_string = ""
    return model
