"""Networks of the project: a pyramidal SwiftNet, a small SegFormer, a plain U-Net.

Each computes logits [N,K,H/s,W/s] of images [N,3,H,W], RGB in 0..1. H and W are multiples of
`MULTIPLE_OF`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from training.networks.pyramid import NetworkShape, PyramidNet
from training.networks.segformer import SegFormer
from training.networks.unet import UNet

__all__ = ["KINDS", "MULTIPLE_OF", "Architecture", "open_network", "save_network"]

KINDS = ("pyramid", "convnext-pyramid", "segformer", "unet")
MULTIPLE_OF = 32


@dataclass(frozen=True)
class Architecture:
    """Kind, number of classes and, of a pyramid, the four widths of its backbone."""

    kind: str
    num_classes: int
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)

    def build(self) -> nn.Module:
        """Return a network with random weights."""
        if self.kind == "segformer":
            return SegFormer(self.num_classes)
        if self.kind == "unet":
            return UNet(self.num_classes)
        backbone: Literal["residual", "convnext"] = (
            "convnext" if self.kind == "convnext-pyramid" else "residual"
        )
        return PyramidNet(NetworkShape(self.num_classes, self.widths, backbone=backbone))


def save_network(architecture: Architecture, network: nn.Module, path: Path) -> None:
    """Write a network's architecture and weights."""
    torch.save({"architecture": asdict(architecture), "weights": network.state_dict()}, path)


def open_network(path: Path) -> nn.Module:
    """Load a network that `save_network` wrote, in evaluation mode; raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a network trained by training.train, got no file {path}")
    saved = torch.load(path, weights_only=True)
    network = Architecture(**saved["architecture"]).build()
    network.load_state_dict(saved["weights"])
    return network.eval()
