"""Tiny networks on disk, whose logits can be computed by hand.

A network of K classes and stride s takes float32 images [N,3,H,W] and gives float32 logits
[N,K,H/s,W/s]: class k's logit is `weights(K)[k]` times the mean colour of the cell's s x s pixels.
So with three classes a cell's label is its strongest channel, and a saturated red cell has the
logits (4, 0, 0).
"""

import json
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

GAIN = 4.0
INPUT_KEYS = (
    "mean", "std", "size", "multiple_of", "channels", "resample", "fit",
    "mode", "crop", "window_stride", "blend", "range", "bands",
)  # fmt: skip
OUTPUT_KEYS = (
    "output_name", "activation", "reduce_zero_label", "ignore_index", "taxonomy", "classes",
)  # fmt: skip


def weights(num_classes: int) -> NDArray[np.float32]:
    """Return weights [K,3]: class k uses channel k % 3 only, with weight 4 / (1 + k // 3)."""
    table = np.zeros((num_classes, 3), np.float32)
    for k in range(num_classes):
        table[k, k % 3] = GAIN / (1 + k // 3)
    return table


def expected_logits(
    images: NDArray[np.float32], num_classes: int = 3, stride: int = 2
) -> NDArray[np.float64]:
    """Compute the network's logits in float64 numpy."""
    n, _, height, width = images.shape
    cells = images.astype(np.float64).reshape(
        n, 3, height // stride, stride, width // stride, stride
    )
    logits: NDArray[np.float64] = np.einsum(
        "kc,nchw->nkhw", weights(num_classes).astype(np.float64), cells.mean(axis=(3, 5))
    )
    return logits


def write_onnx_model(
    folder: Path, name: str, num_classes: int = 3, stride: int = 2, **card_overrides: object
) -> Path:
    """Write `folder/name/{model.onnx,card.toml}` and return `folder/name`; see `write_card`."""
    target = folder / name
    target.mkdir(parents=True)
    onnx.save(onnx_network(num_classes, stride), target / "model.onnx")
    write_card(target, num_classes, stride, **card_overrides)
    return target


def write_endless_model(folder: Path, name: str) -> Path:
    """Write the network with a loop before its end that takes days for a white image."""
    target = write_onnx_model(folder, name)
    network = onnx_network()
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("x", TensorProto.FLOAT, []),
        ],
        [value("again", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [])],
    )
    network.graph.initializer.extend(
        numpy_helper.from_array(array, title)
        for title, array in {
            "almost": np.array(0.999, np.float32),
            "days": np.array(1 << 40),
            "zero": np.array(0, np.float32),
            "true": np.array(True),
        }.items()
    )
    network.graph.node[1].output[0] = "plain"
    network.graph.node.extend(
        [
            helper.make_node("ReduceMin", ["image"], ["darkest"], keepdims=0),
            helper.make_node("Greater", ["darkest", "almost"], ["white"]),
            helper.make_node("Cast", ["white"], ["times"], to=TensorProto.INT64),
            helper.make_node("Mul", ["times", "days"], ["turns"]),
            helper.make_node("Loop", ["turns", "true", "zero"], ["nothing"], body=body),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ]
    )
    onnx.save(network, target / "model.onnx")
    return target


def write_endless_torch_model(folder: Path, name: str) -> Path:
    """Write the network in TorchScript, with a loop that takes days for a white image."""
    target = folder / name
    target.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(EndlessTorchNetwork().eval()).save(str(target / "model.pt"))
    write_card(target, file="model.pt")
    return target


def write_torch_model(
    folder: Path,
    name: str,
    kind: Literal["pt", "pt2"],
    num_classes: int = 3,
    stride: int = 2,
    **card_overrides: object,
) -> Path:
    """Write `folder/name/{model.pt|model.pt2,card.toml}` with the same network."""
    target = folder / name
    target.mkdir(parents=True)
    network, path = TorchNetwork(num_classes, stride).eval(), target / f"model.{kind}"
    # torch warns that TorchScript and parts of its exporter are deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "pt":
            torch.jit.script(network).save(str(path))
        else:
            example = torch.zeros(2, 3, 4 * stride, 6 * stride)
            high, wide = (torch.export.Dim(side, min=1, max=4096) for side in ("h", "w"))
            shapes = ({0: torch.export.Dim("n"), 2: stride * high, 3: stride * wide},)
            torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), path)
    write_card(target, num_classes, stride, **{"file": path.name, **card_overrides})
    return target


def write_card(folder: Path, num_classes: int = 3, stride: int = 2, **overrides: object) -> None:
    """Write a card; each override goes to its own table, None leaves the key out.

    By default the classes are class-0, class-1, … in distinct colours, the input is taken as it
    is on the 0..1 scale, and padded up to the stride. `window_stride` is the card's `stride`, and
    `output_name` the name in its output table.
    """
    values: dict[str, object] = {
        "name": folder.name,
        "file": "model.onnx",
        "title": f"Tiny {folder.name}",
        "license": "CC0-1.0",
        "multiple_of": stride,
        "classes": [
            {"name": f"class-{k}", "color": f"#{k * 2654435761 % 2**24:06x}"}
            for k in range(num_classes)
        ],
        **overrides,
    }
    tables: dict[str, list[str]] = {"": [], "[input]": [], "[output]": []}
    for key, value in values.items():
        if value is None:
            continue
        table = "[input]" if key in INPUT_KEYS else "[output]" if key in OUTPUT_KEYS else ""
        written = key.removeprefix("window_").removeprefix("output_")
        tables[table].append(f"{written} = {toml(value)}")
    lines = [line for table, entries in tables.items() for line in (table, *entries)]
    (folder / "card.toml").write_text("\n".join(lines) + "\n", "utf-8")


def toml(value: object) -> str:
    """Write a value in TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def onnx_network(num_classes: int = 3, stride: int = 2) -> onnx.ModelProto:
    """Build the network as an ONNX graph of dynamic batch, height and width."""
    kernel = numpy_helper.from_array(weights(num_classes)[:, :, None, None], "weights")
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool",
                ["image"],
                ["cells"],
                kernel_shape=[stride, stride],
                strides=[stride, stride],
            ),
            helper.make_node("Conv", ["cells", "weights"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", num_classes, "y", "x"])],
        [kernel],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TorchNetwork(torch.nn.Module):
    """The network as a torch module."""

    def __init__(self, num_classes: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.kernel: torch.Tensor
        self.register_buffer("kernel", torch.from_numpy(weights(num_classes)[:, :, None, None]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d(images, self.stride)
        return torch.nn.functional.conv2d(cells, self.kernel)


class EndlessTorchNetwork(TorchNetwork):
    """The network after a loop that takes days for a white image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        turns = 0
        while bool(images.min() > 0.999) and turns < 1 << 60:
            turns += 1
        cells = torch.nn.functional.avg_pool2d(images, self.stride)
        return torch.nn.functional.conv2d(cells, self.kernel)
