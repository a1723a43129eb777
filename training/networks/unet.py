"""Define a plain U-Net.

After Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation" (MICCAI 2015), with padded convolutions and batch normalisation.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64, 128, 192)


class DoubleConvolution(nn.Sequential):
    """Apply two 3x3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Compute logits [N,K,H,W] of images [N,3,H,W], RGB in 0..1, H and W multiples of 16."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = DoubleConvolution(3, widths[0])
        self.down = nn.ModuleList(DoubleConvolution(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(DoubleConvolution(fine + coarse, fine) for fine, coarse in pairs)
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits of a batch; see the class for shapes and ranges."""
        x = self.first(image)
        skipped = []
        for block in self.down:
            skipped.append(x)
            x = block(F.max_pool2d(x, 2))
        for block, finer in zip(reversed(self.up), reversed(skipped), strict=True):
            coarse = F.interpolate(x, size=finer.shape[-2:], mode="nearest")
            x = block(torch.cat([coarse, finer], dim=1))
        logits: Tensor = self.classifier(x)
        return logits
