"""Define ConvNeXt stages as the backbone of a pyramid.

After Liu et al., "A ConvNet for the 2020s" (CVPR 2022): depthwise 7x7 convolution, layer
normalisation, and two pointwise layers with GELU, scaled by a learnt factor for each channel.
Convolutions between stages overlap, so that sides that are odd at a stage are rounded up, as the
pyramid's sums of resolutions need.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = 7
EXPANSION = 4
INITIAL_SCALE = 1e-6  # of a block's residual


class ChannelNorm(nn.LayerNorm):
    """Normalise the channels of each cell of [N,C,h,w]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,h,w] to the same shape."""
        x = super().forward(x.movedim(1, -1))
        return x.movedim(-1, 1)


class ConvNextBlock(nn.Module):
    """Add a depthwise convolution and a pointwise network to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = ChannelNorm(width, eps=1e-6)
        self.expand = nn.Conv2d(width, EXPANSION * width, 1)
        self.reduce = nn.Conv2d(EXPANSION * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), INITIAL_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,h,w] to the same shape."""
        y = self.expand(self.norm(self.depthwise(x)))
        residual: Tensor = self.scale * self.reduce(F.gelu(y))
        return x + residual


class ConvNextBackbone(nn.Module):
    """Compute ConvNeXt features at strides 4, 8, 16 and 32."""

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 3
        for index, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            reduce: list[nn.Module]
            if index == 0:
                reduce = [nn.Conv2d(inputs, width, 7, 4, 3), ChannelNorm(width, eps=1e-6)]
            else:
                reduce = [ChannelNorm(inputs, eps=1e-6), nn.Conv2d(inputs, width, 3, 2, 1)]
            self.stages.append(
                nn.Sequential(*reduce, *(ConvNextBlock(width) for _ in range(depth)))
            )
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map [N,3,H,W] to four feature maps, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
