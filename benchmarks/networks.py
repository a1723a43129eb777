"""Networks for the benchmark: known architectures with random weights, exported to ONNX.

Speed does not depend on what a network has learnt, but masks do: an untrained one paints a single
class, and PNGs of that cost nothing. So the classifier is scaled once, on the benchmark's image,
so that every class has logits of mean 0 and the same spread, and masks have regions of all classes.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from training.export import fold
from training.network import NetworkShape, PyramidNet

SPREAD = 4.0  # standard deviation of each class's logits over an image
SEED = 1


class Segformer(nn.Module):
    """SegFormer-B0: images [N,3,H,W] to logits [N,K,H/4,W/4]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # The configuration's defaults are those of B0 (arXiv 2105.15203, table 6).
        self.net = SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_classes))

    @property
    def classifier(self) -> nn.Conv2d:
        """The last layer."""
        layer = self.net.decode_head.classifier
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, images: Tensor) -> Tensor:
        """Segment a batch."""
        logits: Tensor = self.net(images).logits
        return logits


@torch.inference_mode()
def spread_classes(network: nn.Module, classifier: nn.Conv2d, images: Tensor) -> None:
    """Scale and shift the classifier so that each of its channels has mean 0 and one spread."""
    seen: list[Tensor] = []
    hook = classifier.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    network(images)
    hook.remove()
    gain = SPREAD / seen[0].std(dim=(0, 2, 3)).clamp(min=1e-6)
    assert classifier.bias is not None
    classifier.weight *= gain[:, None, None, None]
    classifier.bias.copy_((classifier.bias - seen[0].mean(dim=(0, 2, 3))) * gain)


def export_segformer(num_classes: int, images: Tensor, path: Path) -> None:
    """Write SegFormer-B0 for inputs of the size of `images`, float32 [1,3,H,W], normalised."""
    torch.manual_seed(SEED)
    network = Segformer(num_classes).eval()
    spread_classes(network, network.classifier, images)
    export(network, images, path)


def export_pyramid(num_classes: int, images: Tensor, path: Path) -> None:
    """Write the bundled model's architecture for inputs of the size of `images`, in 0..1."""
    torch.manual_seed(SEED)
    network = fold(PyramidNet(NetworkShape(num_classes=num_classes)).eval())
    spread_classes(network, network.classifier, images)
    export(network, images, path)


def export(network: nn.Module, images: Tensor, path: Path) -> None:
    """Write ONNX for one size of input, with the weights inside."""
    torch.onnx.export(
        network,
        (images,),
        path,
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
