"""Define a small SegFormer, a hierarchical transformer with a head of linear layers.

After Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers" (NeurIPS 2021), narrower than its B0 and trained from scratch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (24, 48, 96, 160)
HEADS = (1, 2, 3, 5)
REDUCTIONS = (8, 4, 2, 1)  # of the keys' and values' grid, each way
BLOCKS = 2
EXPANSION = 4
HEAD_WIDTH = 128


class Attention(nn.Module):
    """Attend from each cell to a reduced grid of cells."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.reduce = (
            nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else nn.Identity()
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map tokens [N,height*width,C] to tokens of the same shape."""
        count, _, channels = x.shape
        grid = x.transpose(1, 2).reshape(count, channels, height, width)
        fewer = self.norm(self.reduce(grid).flatten(2).transpose(1, 2))
        query = self._split(self.query(x))
        key, value = (self._split(part) for part in self.key_value(fewer).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value)
        joined: Tensor = self.output(attended.transpose(1, 2).reshape(count, -1, channels))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Apply attention and a feed-forward layer with a depthwise 3x3 convolution."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.norm_first, self.norm_second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, reduction)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map tokens [N,height*width,C] to tokens of the same shape."""
        x = x + self.attention(self.norm_first(x), height, width)
        y = self.widen(self.norm_second(x)).transpose(1, 2)
        y = self.local(y.reshape(*y.shape[:2], height, width)).flatten(2).transpose(1, 2)
        narrowed: Tensor = self.narrow(F.gelu(y))
        return x + narrowed


class Stage(nn.Module):
    """Embed overlapping patches, then apply transformer blocks."""

    def __init__(self, inputs: int, index: int) -> None:
        super().__init__()
        width, kernel, stride = WIDTHS[index], 7 if index == 0 else 3, 4 if index == 0 else 2
        self.embed = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, HEADS[index], REDUCTIONS[index]) for _ in range(BLOCKS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,h,w] to [N,C',h/stride,w/stride]."""
        grid = self.embed(x)
        height, width = grid.shape[-2:]
        tokens = self.norm_before(grid.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, height, width)
        result: Tensor = self.norm_after(tokens).transpose(1, 2).reshape(grid.shape)
        return result


class SegFormer(nn.Module):
    """Compute logits [N,K,H/4,W/4] of images [N,3,H,W], RGB in 0..1, H and W multiples of 32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.stages = nn.ModuleList(Stage(width, index) for index, width in enumerate(inputs))
        self.project = nn.ModuleList(nn.Conv2d(width, HEAD_WIDTH, 1) for width in WIDTHS)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(WIDTHS) * HEAD_WIDTH, HEAD_WIDTH, 1, bias=False),
            nn.BatchNorm2d(HEAD_WIDTH), nn.ReLU(inplace=True), nn.Dropout2d(0.1),
        )  # fmt: skip
        self.classifier = nn.Conv2d(HEAD_WIDTH, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits of a batch; see the class for shapes and ranges."""
        x, features = (image - 0.45) / 0.25, []
        for stage, project in zip(self.stages, self.project, strict=True):
            x = stage(x)
            features.append(project(x))
        size = features[0].shape[-2:]
        same = [F.interpolate(feature, size, mode="bilinear") for feature in features]
        logits: Tensor = self.classifier(self.fuse(torch.cat(same, dim=1)))
        return logits
