"""Outputs of networks: choose the one with the logits, validate it and convert it to logits.

A network may have several outputs, the channels last, one channel for two classes, or apply its
activation. `find_logits` recognises these from the outputs for a trial image, and `LogitsBackbone`
converts each output to logits float32 [N,K,h,w].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.deadline import UNLIMITED, Deadline
from app.errors import ModelError
from app.inference.backbone import Array, Network
from app.inference.model_card import Activation, OutputPolicy
from app.inference.preprocess import Size

MIN_PROBABILITY = 1e-6  # smaller ones, and sums of masks that are zero, have no finite logarithm
SUM_TOLERANCE = 4e-3  # of the sum of K probabilities in float16
MAX_LOGIT = 1e4  # a trained network's are below 100; float32 has three decimals left here
TORCHVISION = {"out", "aux"}  # outputs of its networks; `out` has the logits

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LogitsOutput:
    """The output that has the logits: its name, layout, channels and activation."""

    name: str
    channels_last: bool
    one_channel: bool
    activation: Activation

    def planes(self, output: Array) -> Array:
        """Return an output as float32 [N,C,h,w]."""
        return np.moveaxis(output, -1, 1) if self.channels_last else output

    def to_logits(self, output: Array) -> Array:
        """Convert an output to logits float32 [N,K,h,w].

        Softmax is inverted by the logarithm, up to a constant for each pixel, sigmoid by the
        log-odds. One channel has the log-odds of class 1 against class 0.
        """
        logits = self.planes(output)
        if self.activation == "softmax":
            logits = np.log(np.maximum(logits, MIN_PROBABILITY))
        elif self.activation == "sigmoid":
            inside = np.clip(logits, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
            logits = np.log(inside / (1 - inside))
        if self.one_channel:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return np.ascontiguousarray(logits, np.float32)


class LogitsBackbone:
    """A network whose chosen output is converted to logits; safe for threads.

    A network exported for a fixed number of images gets as many, the last one repeated.
    """

    def __init__(self, network: Network, output: LogitsOutput) -> None:
        self._network, self.output = network, output
        self.device = network.device

    def __call__(self, images: Array, deadline: Deadline = UNLIMITED) -> Array:
        """Compute logits float32 [N,K,h,w] of float32 [N,3,H,W]; see `Backbone`."""
        batch = self._network.input_shape[0] or len(images)
        parts = [
            self._network(
                repeat_last(images[start : start + batch], batch), self.output.name, deadline
            )
            for start in range(0, len(images), batch)
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self.output.to_logits(whole[: len(images)])


def repeat_last(images: Array, count: int) -> Array:
    """Return `count` images: those given, and the last one as often as needed."""
    missing = count - len(images)
    return np.concatenate([images, *[images[-1:]] * missing]) if missing > 0 else images


def find_logits(
    outputs: Outputs, num_classes: int, policy: OutputPolicy, size: Size
) -> LogitsOutput:
    """Find the output with the logits among a network's outputs for an input of `size` (H, W).

    Raises ModelError unless one output, or the one that the card names, has the shape of logits:
    [N,K,h,w] or [N,h,w,K], or one channel for two classes.
    """
    name = policy.name
    if name is None and set(outputs) == TORCHVISION:
        name = "out"
    if name is not None and name not in outputs:
        raise ModelError(f"expected output.name to be one of {list(outputs)}, got {name!r}")
    considered = outputs if name is None else {name: outputs[name]}
    for channels in (num_classes, 1) if num_classes == 2 else (num_classes,):
        found = [
            LogitsOutput(
                key, channels_last(array, channels, size), channels == 1, policy.activation
            )
            for key, array in considered.items()
            if has_form(array, channels)
        ]
        if len(found) > 1:
            raise ModelError(
                f"expected output.name in the card, as several outputs have the shape of logits, "
                f"got {[output.name for output in found]}"
            )
        if found and found[0].one_channel and policy.activation == "softmax":
            raise ModelError(
                'expected activation = "sigmoid" or "none" for one channel, got "softmax"'
            )
        if found:
            return found[0]
    raise ModelError(f"expected logits [1,{num_classes},h,w], got {describe_shapes(considered)}")


def has_form(array: NDArray[Any], channels: int) -> bool:
    """Return whether an output is of floats [N,C,h,w] or [N,h,w,C]."""
    is_grid = array.dtype.kind == "f" and array.ndim == 4
    return is_grid and channels in (array.shape[1], array.shape[3])


def channels_last(array: NDArray[Any], channels: int, size: Size) -> bool:
    """Return whether an output is [N,h,w,C].

    Where both layouts fit, it is so if only that grid has the aspect ratio of the input.
    """
    sides: tuple[int, ...] = array.shape
    _, first, second, last = sides
    if first != channels or last != channels:
        return last == channels
    has_aspect = second * size[1] == last * size[0]
    return not has_aspect and first * size[1] == second * size[0]


def describe_shapes(outputs: Outputs) -> str:
    """Return the shape of an only output, or the names and shapes of several."""
    texts = {
        name: f"{list(array.shape)}" + ("" if array.dtype.kind == "f" else f" of {array.dtype}")
        for name, array in outputs.items()
    }
    if len(texts) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{name} {text}" for name, text in texts.items()) or "no output"


def check_activation(planes: Array, activation: Activation) -> None:
    """Raise ModelError where the values [N,C,h,w] of an output contradict the card's activation.

    Values in 0..1 are probabilities: logits of a trained network leave this range at some pixel of
    a trial image. Not a number is no probability.
    """
    low, high = float(planes.min()), float(planes.max())
    is_bounded = low >= 0 and high <= 1 + SUM_TOLERANCE
    if activation != "none" and not is_bounded and not np.isnan(low):
        raise ModelError(
            f'expected probabilities in 0..1, as activation = "{activation}" says, '
            f"got values in {low:.4g}..{high:.4g}"
        )
    if activation == "none" and is_bounded and high > low:
        sums_to_one = planes.shape[1] > 1 and planes.sum(axis=1).max() <= 1 + SUM_TOLERANCE
        kind = "softmax" if sums_to_one else "sigmoid"
        sums = " that sum to one or below" if sums_to_one else ""
        raise ModelError(
            f"expected logits, got values in 0..1{sums}, as of probabilities: export the network "
            f'without its last activation, or set activation = "{kind}" in [output] of the card '
            f"(--activation {kind})"
        )


def magnitude_warning(logits: Array) -> str | None:
    """Return a warning for logits beyond MAX_LOGIT; None for others. Infinite ones do not count."""
    largest = float(np.abs(logits, where=np.isfinite(logits), out=np.zeros_like(logits)).max())
    if largest <= MAX_LOGIT:
        return None
    return (
        f"expected logits of at most {MAX_LOGIT:g}, got {largest:.3g} for a trial image: the "
        f"confidence is 0 or 1 almost everywhere; check mean, std and the output"
    )
