"""Read, export and join ONNX graphs, with the optional package onnx."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from app.conversion.exported_modules import NetworkInput
from app.conversion.quantize import remove_metadata
from app.errors import ModelError, SetupError
from app.inference.backbone import first_line
from app.inference.model_card import ModelFolder
from app.inference.outputs import LogitsOutput

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the first with anti-aliased resizing
IMAGE, INPUT, PIXELS, OUTPUT = "image", "segcal_input", "segcal_pixels", "segcal_output"


def import_packages() -> Any:  # noqa: ANN401 - the package has no types
    """Import onnx, and check that torch's exporter has what it needs; raises SetupError."""
    try:
        import onnx.compose  # noqa: PLC0415 - an optional extra
        import onnx.version_converter  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise SetupError(
            f"expected the extra packages of `pip install segcal[export]`, got: {error}"
        ) from error
    return onnx


def load_backbone(package: Any, folder: ModelFolder) -> "onnx.ModelProto":  # noqa: ANN401
    """Load a model's own graph, in opset 18 at least; raises ModelError where that fails."""
    try:
        model: onnx.ModelProto = package.load(folder.path)
        if opset(model) < OPSET:
            model = package.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises errors of many types
        raise ModelError(
            f"{folder.card.name}: expected a graph that can be converted to opset {OPSET}, "
            f"got: {first_line(error)}"
        ) from error
    return model


def opset(model: "onnx.ModelProto") -> int:
    """Return the version of ONNX's own operators in a model."""
    versions: list[int] = [
        entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
    ]
    return max(versions)


def network_input(model: "onnx.ModelProto") -> NetworkInput:
    """Return the form of a graph's input, as `OnnxBackbone` reads it."""
    weights = {entry.name for entry in model.graph.initializer}
    (value,) = (entry for entry in model.graph.input if entry.name not in weights)
    sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
    half = value.type.tensor_type.elem_type == 10  # FLOAT16
    return NetworkInput(
        batch=sides[0] or 1,
        dtype=torch.float16 if half else torch.float32,
        channels_last=sides[3] == 3 and sides[1] != 3,
    )


def to_onnx(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: Sequence[str],
    version: int,
    grid_axes: tuple[int, int] = (2, 3),
) -> "onnx.ModelProto":
    """Export a module whose inputs are images [H,W,3] or maps, of any height and width."""
    shapes = tuple(
        dict.fromkeys((0, 1) if value.ndim == 3 else grid_axes, torch.export.Dim.AUTO)
        for value in inputs.values()
    )
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=version,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - the exporter returns None only for a file name
    return program.model_proto


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's own warnings and log lines."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def connect(package: Any, model: "onnx.ModelProto", output: LogitsOutput) -> None:  # noqa: ANN401
    """Name a graph's input INPUT and its output with the logits OUTPUT, in place."""
    graph, make_node = model.graph, package.helper.make_node
    weights = {entry.name for entry in graph.initializer}
    (value,) = (entry for entry in graph.input if entry.name not in weights)
    graph.node.insert(0, make_node("Identity", [INPUT], [value.name]))
    value.name = INPUT
    kept = next(entry for entry in graph.output if entry.name == output.name)
    result = package.helper.make_tensor_value_info(OUTPUT, package.TensorProto.FLOAT, None)
    graph.node.append(make_node("Cast", [kept.name], [OUTPUT], to=package.TensorProto.FLOAT))
    del graph.output[:]
    graph.output.append(result)


def join(package: Any, parts: Sequence["onnx.ModelProto"]) -> "onnx.ModelProto":  # noqa: ANN401
    """Join graphs whose values are named alike into one model, without the exporters' metadata."""
    model = package.ModelProto()
    model.producer_name = "segcal"
    model.graph.name = "segcal"
    domains: dict[str, int] = {}
    for index, part in enumerate(parts):
        named = package.compose.add_prefix(
            part, f"part{index}/", rename_inputs=False, rename_outputs=False
        )
        model.ir_version = max(model.ir_version, named.ir_version)
        graph = named.graph
        model.graph.node.extend(graph.node)
        model.graph.initializer.extend(graph.initializer)
        model.graph.sparse_initializer.extend(graph.sparse_initializer)
        model.graph.quantization_annotation.extend(graph.quantization_annotation)
        model.functions.extend(named.functions)
        for entry in named.opset_import:
            domains[entry.domain] = max(domains.get(entry.domain, 0), entry.version)
    for domain, version in domains.items():
        model.opset_import.add(domain=domain, version=version)
    model.graph.input.append(parts[0].graph.input[0])
    model.graph.output.extend(parts[-1].graph.output)
    return remove_metadata(model)
