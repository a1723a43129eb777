"""The smallest network that segments: one convolution of stride 4, so that the rest dominates."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GAIN = 8.0  # spreads the logits, so that masks have regions


def write_model(folder: Path, classes: int) -> None:
    """Write `model.onnx`, [N,3,H,W] to [N,K,H/4,W/4] with random weights, and its card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(1).normal(0, GAIN / 48**0.5, (classes, 3, 4, 4))
    node = helper.make_node("Conv", ["image", "weights"], ["logits"], strides=[4, 4])
    graph = helper.make_graph(
        [node],
        "stride_four",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes, "y", "x"])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    entries = ", ".join(
        f'{{name = "class {index}", color = "#{index * 104729 % (1 << 24):06x}"}}'
        for index in range(classes)
    )
    (folder / "card.toml").write_text(
        f'name = "{folder.name}"\nfile = "model.onnx"\ntitle = "random weights"\n'
        "[input]\nmean = [0.5, 0.5, 0.5]\nmultiple_of = 4\n"
        f"[output]\nclasses = [{entries}]\n"
    )
