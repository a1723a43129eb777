"""Preprocessing and postprocessing of the service as torch modules, to be exported to ONNX.

Sizes are computed from shapes, which are symbolic during an export, so that the exported graphs
take images of any size. `app.serving.pipeline` is the definition; tests hold these modules to it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from app.calibration.base import MAX_LOG_ODDS, Calibrator
from app.inference.model_card import InputPolicy, ShortSide
from app.inference.outputs import MIN_PROBABILITY, LogitsOutput
from app.inference.preprocess import Size

MAX_ABSOLUTE_LOGIT = 3e4  # that infinite logits are replaced by
MAX_CONFIDENCE = 1 / (1 + math.exp(-MAX_LOG_ODDS))  # before a shift


@dataclass(frozen=True)
class NetworkInput:
    """The form of a network's input: number of images, type, and whether the channels are last."""

    batch: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False


def resized_size(image: Size, policy: InputPolicy) -> Size:
    """Compute the size (height, width) of a resized image, as `preprocess.plan` does."""
    height, width = image
    if policy.size == "native":
        return image
    if isinstance(policy.size, ShortSide):
        shorter = least(height, width)
        side = policy.size.short_side
        return rounded(height * side, shorter), rounded(width * side, shorter)
    if policy.fit == "stretch":
        return policy.size
    high, wide = policy.size
    return (
        least(high, rounded(height * wide, width)),
        least(wide, rounded(width * high, height)),
    )


def rounded(numerator: int, denominator: int) -> int:
    """Divide and round to the nearest integer of at least 1, halves to the even one."""
    doubled = 2 * numerator + denominator
    above = doubled // (2 * denominator)
    is_half = 1 - least(doubled % (2 * denominator), 1)
    nearest: int = largest(above - above % 2 * is_half, 1)
    return nearest


def least(one: int, other: int) -> int:
    """Return the smaller of two sizes, which may be symbolic."""
    size: int = torch.sym_min(one, other)  # type: ignore[no-untyped-call]
    return size


def largest(one: int, other: int) -> int:
    """Return the larger of two sizes, which may be symbolic."""
    size: int = torch.sym_max(one, other)  # type: ignore[no-untyped-call]
    return size


def padded_size(resized: Size, policy: InputPolicy) -> Size:
    """Compute the size (height, width) of the network's input, as `preprocess.plan` does."""
    high, wide = resized
    if policy.fit == "letterbox" and isinstance(policy.size, tuple):
        high, wide = policy.size
    multiple = policy.multiple_of
    # Of positive numbers only: ONNX divides integers towards zero.
    rows, columns = ((side + multiple - 1) // multiple for side in (high, wide))
    return rows * multiple, columns * multiple


class Preprocessing(nn.Module):
    """Resize, pad and normalise one image: uint8 RGB [H,W,3] to the network's input.

    Returns the resized image uint8 [h,w,3] as well.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, policy: InputPolicy, network: NetworkInput) -> None:
        super().__init__()
        self.policy, self.network = policy, network
        mean, std = torch.tensor(policy.mean), torch.tensor(policy.std)
        self.register_buffer("gain", 1 / (255 * std))
        self.register_buffer("shift", mean / std)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input [N,3,H',W'] or [N,H',W',3], and the resized image."""
        size = image.shape[0], image.shape[1]
        pixels = image
        if self.policy.size != "native":
            pixels = resized(image, resized_size(size, self.policy), self.policy.resample)
        planes = (edge_padded(pixels, self.policy).float() * self.gain - self.shift)[None]
        if self.policy.channels == "bgr":
            planes = planes.flip(-1)
        if not self.network.channels_last:
            planes = planes.movedim(-1, 1)
        batch = planes.expand(self.network.batch, -1, -1, -1).to(self.network.dtype)
        return batch.contiguous(), pixels


def resized(image: Tensor, size: Size, resample: str) -> Tensor:
    """Resize uint8 [H,W,3] as Pillow does: along rows, then along columns, in 8 bits each."""
    planes = image.movedim(-1, 0)[None].float()
    for target in ((image.shape[0], size[1]), size):
        planes = interpolate(planes, target, mode=resample, antialias=True)
        planes = planes.round().clamp(0, 255)
    return planes[0].movedim(0, -1).to(torch.uint8)


def edge_padded(pixels: Tensor, policy: InputPolicy) -> Tensor:
    """Pad a resized image [h,w,3] at the right and the bottom by its edge."""
    size = pixels.shape[0], pixels.shape[1]
    high, wide = padded_size(size, policy)
    rows = torch.arange(high).clamp(max=size[0] - 1)
    columns = torch.arange(wide).clamp(max=size[1] - 1)
    return pixels[rows][:, columns]


class Postprocessing(nn.Module):
    """Calibrate, upsample, label, and read the confidence of one image.

    Without a calibrator the confidence is the plain softmax. `shifts` is true where the calibrator
    shifts log-odds; the image's in-distribution score is a third output then.
    """

    def __init__(
        self, policy: InputPolicy, output: LogitsOutput, calibrator: Calibrator | None, classes: int
    ) -> None:
        super().__init__()
        self.policy, self.output, self.calibrator = policy, output, calibrator
        self.num_classes = classes
        # Python values: during an export tensors have no values to branch on.
        self.scale = 1.0 if calibrator is None else calibrator.scale()
        trial = torch.zeros(1, classes, 2, 2)
        self.shifts = calibrator is not None and calibrator.shift_of_cells(trial) is not None

    def forward(self, network_output: Tensor, pixels: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """Return labels uint8 (uint16 from 256 classes on) [H,W] and confidence float32 [H,W].

        `network_output` is as the network returns it, `pixels` the resized image uint8 [h,w,3],
        `image` the image uint8 [H,W,3].
        """
        logits = finite(self.to_logits(network_output[:1]))
        label_logits, confidence_logits = self.calibrate(logits, pixels)
        axes = self.axes(logits, pixels, image)
        fine = upsampled(label_logits, axes, 1)[0]
        labels = fine.argmax(dim=0, keepdim=True)
        if confidence_logits is not label_logits:
            fine = upsampled(confidence_logits, axes, 1)[0]
        gaps = (fine - fine.gather(0, labels)) * (1.0 if self.scale is None else self.scale)
        confidence = 1 / gaps.exp().sum(dim=0)
        kind = torch.uint8 if self.num_classes < 256 else torch.uint16
        if not self.shifts:
            return labels[0].to(kind), confidence
        assert self.calibrator is not None  # noqa: S101 - `shifts` says so
        found = self.calibrator.shift_of_cells(logits)
        assert found is not None  # noqa: S101
        shift, score, stride = found
        shift = upsampled((shift * score[:, None, None])[:, None], axes, stride)[0, 0]
        return labels[0].to(kind), shifted(confidence, shift, self.num_classes), score[0]

    def to_logits(self, output: Tensor) -> Tensor:
        """Convert an output to logits float32 [1,K,h,w], as `LogitsOutput.to_logits` does."""
        logits = (output.movedim(-1, 1) if self.output.channels_last else output).float()
        if self.output.activation == "softmax":
            logits = logits.clamp_min(MIN_PROBABILITY).log()
        elif self.output.activation == "sigmoid":
            inside = logits.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
            logits = (inside / (1 - inside)).log()
        if self.output.one_channel:
            return torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def calibrate(self, logits: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that decide labels and those of confidence, [1,K,h,w] each."""
        if self.calibrator is None or self.scale is not None:
            return logits, logits
        calibrator = self.calibrator
        if calibrator.needs_image:
            grid = logits.shape[2], logits.shape[3]
            calibrator = calibrator.with_image(mean_colors(edge_padded(pixels, self.policy), grid))
        calibrated = calibrator(logits)
        return (logits if calibrator.invariances.argmax else calibrated), calibrated

    def axes(self, logits: Tensor, pixels: Tensor, image: Tensor) -> list["Axis"]:
        """Return the vertical and the horizontal axis of an image."""
        padded = padded_size((pixels.shape[0], pixels.shape[1]), self.policy)
        return [
            Axis(image.shape[axis], pixels.shape[axis], padded[axis], logits.shape[2 + axis])
            for axis in (0, 1)
        ]


@dataclass(frozen=True)
class Axis:
    """Pixels along one axis of an image: its own, resized, padded, and cells of the grid."""

    count: int
    resized: int
    padded: int
    cells: int

    def taps(self, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the two cells of each pixel and the second one's weight; see `postprocess.taps`.

        They are computed in double precision, as the service does.
        """
        last = (self.cells - 1) // stride
        centres = torch.arange(self.count, dtype=torch.float64) + 0.5
        position = centres * self.resized * self.cells / (self.count * self.padded) - 0.5
        position = (position / stride).clamp(0, last)
        first = position.floor()
        lower = (first + 1).clamp(max=last)
        return first.long(), lower.long(), (position - first).float()


def finite(logits: Tensor) -> Tensor:
    """Replace logits [N,K,h,w] that are not finite, as a predictor does."""
    broken = logits.isnan().any(dim=1, keepdim=True)
    limited = logits.clamp(-MAX_ABSOLUTE_LOGIT, MAX_ABSOLUTE_LOGIT)
    return torch.where(broken, 0.0, torch.where(logits.isinf(), limited, logits))


def upsampled(planes: Tensor, axes: list[Axis], stride: int) -> Tensor:
    """Upsample planes [N,C,n,m], at every `stride`-th cell, to the image's size."""
    (top, bottom, down), (left, right, across) = (axis.taps(stride) for axis in axes)
    rows = torch.lerp(planes[:, :, top], planes[:, :, bottom], down[:, None])
    return torch.lerp(rows[..., left], rows[..., right], across)


def shifted(confidence: Tensor, shift: Tensor, num_classes: int) -> Tensor:
    """Add a shift [H,W] to the log-odds of confidence [H,W], as `shift_kernel.shift_rows` does."""
    own = torch.where(shift == 0, confidence, confidence.clamp(max=MAX_CONFIDENCE))
    power = (-shift.abs()).exp()
    against = (1 - own) * torch.where(shift > 0, power, 1.0)
    in_favour = own * torch.where(shift > 0, 1.0, power)
    return (in_favour / (against + in_favour)).clamp_min(1 / num_classes)


def mean_colors(padded: Tensor, grid: Size) -> Tensor:
    """Compute the mean colour uint8 [3,h,w] of each cell of a padded image uint8 [H,W,3]."""
    planes = padded.movedim(-1, 0).to(torch.int32)
    counts = []
    for axis in (1, 2):
        edges = torch.arange(grid[axis - 1] + 1) * planes.shape[axis] // grid[axis - 1]
        # A cell smaller than a pixel has the colour of the pixel that it begins in.
        start = edges[:-1].clamp(max=planes.shape[axis] - 1)
        end = torch.maximum(edges[1:], start + 1)
        sums = planes.cumsum(axis, dtype=torch.int32)
        first = planes.index_select(axis, start)
        planes = sums.index_select(axis, end - 1) - sums.index_select(axis, start) + first
        counts.append(end - start)
    return (planes / (counts[0][:, None] * counts[1])).round().to(torch.uint8)
