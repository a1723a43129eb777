"""Define a pyramidal SwiftNet: one backbone for three resolutions and one upsampling path.

After Oršić and Šegvić, "Efficient semantic segmentation with pyramidal fusion" (Pattern
Recognition 2021), and Grcić, "A SwiftNet for 2020s"; sized for two CPU cores and trained from
scratch. The same residual backbone runs on the image at full, half and quarter size. Features of
equal stride are summed, and a ladder of 3x3 convolutions upsamples the sums from the coarsest
stride (128) to stride 4. The classifier predicts four logit vectors per stride-4 cell and a pixel
shuffle places them at stride 2, which thin objects need.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.convnext import ConvNextBackbone

IMAGE_MEAN = (0.39, 0.40, 0.41)
IMAGE_STD = (0.29, 0.30, 0.29)


@dataclass(frozen=True)
class NetworkShape:
    """Widths and depths of a `PyramidNet`, whose stages have strides 4, 8, 16 and 32.

    `stem` is the width of a residual backbone's first convolution.
    """

    num_classes: int = 11
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    stem: int = 32
    ladder: int = 64
    head: int = 48
    levels: int = 3
    dropout: float = 0.1
    backbone: Literal["residual", "convnext"] = "residual"


class ConvNorm(nn.Sequential):
    """Apply a convolution without bias, then batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class ResidualBlock(nn.Module):
    """Apply two 3x3 convolutions and add the input, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                ConvNorm(inputs, outputs, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,h,w] to [N,C',ceil(h/stride),ceil(w/stride)]."""
        y = self.second(F.relu(self.first(x), inplace=True))
        return F.relu(y + self.shortcut(x), inplace=True)


class Backbone(nn.Module):
    """Compute residual features at strides 4, 8, 16 and 32."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, shape.stem, 3, 2),
            nn.ReLU(inplace=True),
            ConvNorm(shape.stem, shape.widths[0], 3, 2),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        inputs = shape.widths[0]
        for index, (width, depth) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(ResidualBlock(inputs, width, stride))
                inputs = width
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map [N,3,H,W] to four feature maps, finest first."""
        features = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class PyramidNet(nn.Module):
    """Compute logits [N,K,H/2,W/2] of images [N,3,H,W], RGB in 0..1, H and W multiples of 8.

    The network normalises its input itself; mean and standard deviation are buffers.
    """

    def __init__(self, shape: NetworkShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or NetworkShape()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1))
        self.backbone: nn.Module = (
            ConvNextBackbone(shape.widths, shape.blocks)
            if shape.backbone == "convnext"
            else Backbone(shape)
        )
        steps = len(shape.widths) + shape.levels - 1
        ladder = [shape.head] + [shape.ladder] * (steps - 1)
        # Each stage adds to as many strides of the ladder as there are resolutions. The finest
        # stride has fewer channels because it has four times the cells of the next one.
        self.laterals = nn.ModuleList(
            nn.ModuleList(
                ConvNorm(width, ladder[stage + level], 1) for level in range(shape.levels)
            )
            for stage, width in enumerate(shape.widths)
        )
        self.narrow = nn.ModuleList(
            ConvNorm(coarse, fine, 1) if coarse != fine else nn.Identity()
            for fine, coarse in pairwise(ladder)
        )
        self.blend = nn.ModuleList(ConvNorm(width, width) for width in ladder)
        self.dropout = nn.Dropout2d(shape.dropout)
        self.classifier = nn.Conv2d(shape.head, 4 * shape.num_classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits of a batch; see the class for shapes and ranges."""
        x = (image - self.mean) / self.std
        sums: list[Tensor | None] = [None] * len(self.blend)
        for level in range(self.shape.levels):
            for stage, feature in enumerate(self.backbone(x)):
                lateral = self.laterals[stage][level](feature)  # type: ignore[index]
                known = sums[stage + level]
                sums[stage + level] = lateral if known is None else known + lateral
            x = F.avg_pool2d(x, 2)
        return self.classify(self.upsample([x for x in sums if x is not None]))

    def upsample(self, sums: list[Tensor]) -> Tensor:
        """Merge feature sums, finest first, into [N,C,H/4,W/4], from the coarsest stride on."""
        x = F.relu(self.blend[-1](F.relu(sums[-1])), inplace=True)
        for index in range(len(sums) - 2, -1, -1):
            x = F.interpolate(self.narrow[index](x), size=sums[index].shape[-2:], mode="bilinear")
            x = F.relu(self.blend[index](F.relu(x + sums[index])), inplace=True)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Map [N,C,H/4,W/4] to logits [N,K,H/2,W/2]."""
        return F.pixel_shuffle(self.classifier(self.dropout(x)), 2)
