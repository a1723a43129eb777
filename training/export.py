"""Export a trained network to ONNX and compare the file's logits with torch's.

`python -m training.export runs/NAME/averaged.pt models/camvid-street/model.onnx`
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.networks import open_network
from training.networks.pyramid import ConvNorm, PyramidNet

TOLERANCE = 1e-3  # absolute, on logits of magnitude 10
SIZES = ((360, 480), (256, 320), (720, 960), (64, 72), (8, 8))


def load(path: Path) -> PyramidNet:
    """Load a trained pyramid; raises TypeError for another network."""
    net = open_network(path)
    if not isinstance(net, PyramidNet):
        raise TypeError(f"expected a PyramidNet, got a {type(net).__name__}")
    return net


def fold(net: PyramidNet) -> PyramidNet:
    """Return a copy of a network with its batch normalisations folded into the convolutions."""
    folded = copy.deepcopy(net)
    for module in folded.modules():
        if isinstance(module, ConvNorm):
            convolution, norm = module[0], module[1]
            assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - by construction
            assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
            module[0] = fuse_conv_bn_eval(convolution, norm)
            module[1] = nn.Identity()
    return folded


def export(net: PyramidNet, path: Path) -> None:
    """Write ONNX with dynamic batch, height and width (multiples of 8)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    eight = (
        torch.export.Dim("eight_rows", min=1, max=2048),
        torch.export.Dim("eight_columns", min=1, max=2048),
    )
    program = torch.onnx.export(
        net,
        (torch.rand(2, 3, 256, 320),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch"), 2: 8 * eight[0], 3: 8 * eight[1]}},
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101 - the exporter returns None only for a file name
    program.save(str(path), include_initializers=True, external_data=False)
    onnx.save(anonymous(onnx.load(path)), path)


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove metadata and doc strings, in which the exporter writes paths of its machine."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for weight in graph.initializer:
        del weight.metadata_props[:]
        weight.doc_string = ""
    return model


@torch.inference_mode()
def largest_difference(net: PyramidNet, path: Path) -> float:
    """Return the largest absolute difference of torch's and ONNX Runtime's logits over SIZES."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for height, width in SIZES:
        image = torch.rand(1, 3, height, width)
        found = session.run(None, {"image": image.numpy()})[0]
        worst = max(worst, float(np.abs(net(image).numpy() - found).max()))
    return worst


def main() -> None:
    """Export and compare; raises SystemExit if the logits differ by more than TOLERANCE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    net = load(args.weights)
    export(fold(net), args.out)
    worst = largest_difference(net, args.out)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters} parameters, {args.out.stat().st_size} bytes, logits differ by {worst:.2e}")
    if worst > TOLERANCE:
        raise SystemExit(f"expected logits within {TOLERANCE} of torch's, got {worst}")


if __name__ == "__main__":
    main()
