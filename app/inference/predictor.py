"""Predictors: a loaded model that computes logits of images, with test-time augmentation."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from app.deadline import UNLIMITED, Deadline
from app.errors import ModelError
from app.inference.backbone import Backbone, Network, first_line, open_backbone
from app.inference.batching import BatchingBackbone
from app.inference.model_card import InputPolicy, ModelFolder
from app.inference.outputs import (
    LogitsBackbone,
    check_activation,
    find_logits,
    magnitude_warning,
    repeat_last,
)
from app.inference.preprocess import (
    Array,
    Geometry,
    Size,
    normalised,
    plan,
    preprocess,
    resized,
    thumbnail,
)
from app.inference.remote_backbone import RemoteBackbone
from app.inference.sliding_window import Strip, Windows, strips, window_axis
from app.inference.threads import ActiveRequests

log = logging.getLogger(__name__)

Tta = Literal["none", "flip", "multiscale"]
SCALES = (0.75, 1.25)  # of multiscale augmentation, besides 1
TRIAL_SIZE = (256, 320)
TRIAL_BLOCK = 16  # pixels


@dataclass(frozen=True)
class PreparedImage:
    """A resized image, uint8 RGB, with its geometry and its windows as inputs of the network."""

    geometry: Geometry
    windows: Windows
    image: NDArray[np.uint8]

    def thumbnail(self, grid: Size, rows: range) -> Tensor:
        """Compute the mean colour of each cell in some rows of a grid (h, w): uint8 [3,n,w]."""
        return torch.from_numpy(thumbnail(self.image, self.geometry, grid, rows))


@dataclass(frozen=True)
class Predictor:
    """A loaded model; `min_size` is the height and width of the smallest input that it takes.

    `warnings` are sentences on outputs that are likely wrong, but can be served.
    """

    folder: ModelFolder
    backbone: Backbone
    min_size: Size = (1, 1)
    warnings: tuple[str, ...] = ()

    def prepare_windows(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Resize uint8 RGB [H,W,3] and place its windows: one in mode whole, or those of slide."""
        policy = self.folder.card.input
        geometry = plan((image.shape[0], image.shape[1]), policy, self.min_size)
        image = resized(image, geometry, policy)
        height, width = geometry.padded
        crop, stride = policy.crop or geometry.padded, policy.stride or geometry.padded
        down = window_axis(height, crop[0], stride[0])
        across = window_axis(width, crop[1], stride[1])

        def cut(row: int, column: int) -> Tensor:
            size = down.length, across.length
            return torch.from_numpy(normalised(image, policy, (row, column), size))

        if len(down.starts) == len(across.starts) == 1:
            only = cut(0, 0)
            return PreparedImage(geometry, Windows(down, across, lambda _row, _column: only), image)
        return PreparedImage(geometry, Windows(down, across, cut), image)

    def first_window(self, image: NDArray[np.uint8]) -> Tensor:
        """Return the network's first input float32 [1,3,h,w] for uint8 RGB [H,W,3]."""
        return self.prepare_windows(image).windows.cut(0, 0)

    def strips(
        self,
        prepared: PreparedImage,
        tta: Tta = "none",
        receptive_radius: int = 0,
        deadline: Deadline = UNLIMITED,
    ) -> Iterator[Strip]:
        """Yield an image's logits in strips of the grid's rows, from top to bottom.

        `receptive_radius` is the distance in rows of the farthest neighbours that a calibrator
        reads. Test-time augmentation acts on each window as on an image of its own.
        """
        blend = self.folder.card.input.blend
        return strips(
            prepared.windows,
            lambda images: self.logits(images, tta, deadline),
            blend,
            receptive_radius,
        )

    def grid(self, prepared: PreparedImage, tta: Tta = "none") -> Tensor:
        """Return an image's logits [1,K,h,w], the rows of all strips joined."""
        parts = list(self.strips(prepared, tta))
        if len(parts) == 1:
            return parts[0].logits
        own = [
            logits[:, :, band.cells.start - band.top : band.cells.stop - band.top]
            for logits, band in parts
        ]
        return torch.cat(own, dim=2)

    def prepare(self, image: NDArray[np.uint8]) -> tuple[Tensor, Geometry]:
        """Preprocess uint8 RGB [H,W,3] as one input of the network, float32 [1,3,H',W']."""
        planes, geometry = preprocess(image, self.folder.card.input)
        return torch.from_numpy(planes), geometry

    @torch.inference_mode()
    def logits(self, images: Tensor, tta: Tta = "none", deadline: Deadline = UNLIMITED) -> Tensor:
        """Compute finite logits float32 [N,K,h,w] of inputs float32 [N,3,H,W].

        With test-time augmentation, the views' log-probabilities are averaged on the grid of the
        unchanged view. Calibrators are fitted and measured without it.
        """
        plain = self._run(images, deadline)
        if tta == "none":
            return plain
        total = plain.log_softmax(dim=1)
        if tta == "flip":
            total += self._run(images.flip(-1), deadline).flip(-1).log_softmax(dim=1)
            return total / 2
        for scale in SCALES:
            view = self._run(self._rescale(images, scale), deadline)
            if view.shape[-2:] != total.shape[-2:]:
                view = F.interpolate(view, total.shape[-2:], mode="bilinear")
            total += view.log_softmax(dim=1)
        return total / (1 + len(SCALES))

    def _run(self, images: Tensor, deadline: Deadline) -> Tensor:
        """Run the backbone and replace logits that are not finite."""
        logits = torch.from_numpy(self.backbone(images.contiguous().numpy(), deadline))
        # The sum is finite only if all logits are, and is cheaper than a check of each.
        if torch.isfinite(logits.sum()):
            return logits
        # All classes of a pixel with a NaN are taken as equally likely.
        broken = logits.isnan().any(dim=1, keepdim=True)
        return torch.where(broken, 0.0, logits).nan_to_num(posinf=3e4, neginf=-3e4)

    def _rescale(self, images: Tensor, scale: float) -> Tensor:
        """Resize inputs by `scale`, to sides in multiples of `multiple_of`."""
        multiple = self.folder.card.input.multiple_of
        height, width = (
            max(multiple, round(side * scale / multiple) * multiple) for side in images.shape[-2:]
        )
        return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def open_predictor(
    folder: ModelFolder, device: str, threads: int, active_requests: ActiveRequests | None = None
) -> Predictor:
    """Load a model, run it once on a trial image, and validate its output.

    Raises ModelError where the file does not load or its output does not match the card.
    """
    network = open_network(folder, device, threads, active_requests)
    policy = folder.card.input
    images = trial_input(policy)  # compiles the kernel of preprocessing, too
    try:
        backbone, logits, warnings = try_network(network, folder, images)
    except ModelError as error:
        raise ModelError(f"{folder.card.name}: {error}") from error
    if network.device == "cuda":
        backbone = BatchingBackbone(backbone)
    predictor = Predictor(folder, backbone, warnings=warnings)
    if policy.crop is not None:
        grid = logits.shape[2], logits.shape[3]
        predictor = replace(predictor, min_size=find_min_size(predictor, policy.crop, grid))
    log.info("loaded %s on %s", folder.card.name, predictor.backbone.device)
    return predictor


def open_network(
    folder: ModelFolder, device: str, threads: int, active_requests: ActiveRequests | None
) -> Network:
    """Load a model's file, or connect to its inference server; raises ModelError."""
    if (remote := folder.card.remote) is not None:
        return RemoteBackbone(remote, folder.weights_sha256)
    return open_backbone(folder.path, device, threads, active_requests)


def trial_input(policy: InputPolicy) -> Array:
    """Return the network's input for a trial image of the policy's size: float32 [1,3,H,W].

    The image has blocks of random colours. A uniform image would leave some networks' logits
    within 0..1, which are taken for probabilities.
    """
    size = policy.crop or (policy.size if isinstance(policy.size, tuple) else TRIAL_SIZE)
    height, width = (-(-side // TRIAL_BLOCK) for side in size)
    blocks = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = blocks.repeat(TRIAL_BLOCK, axis=0).repeat(TRIAL_BLOCK, axis=1)
    if policy.crop is not None:
        return normalised(image, policy, (0, 0), policy.crop)
    return preprocess(np.ascontiguousarray(image[: size[0], : size[1]]), policy)[0]


def try_network(
    network: Network, folder: ModelFolder, images: Array
) -> tuple[Backbone, Array, tuple[str, ...]]:
    """Run a network on one image [1,3,H,W]; return its backbone, its logits and warnings.

    Raises ModelError where the network does not take the image, or its output contradicts the card.
    """
    size = images.shape[2], images.shape[3]
    check_size(network, folder.card.input, size)
    try:
        outputs = network.outputs(repeat_last(images, network.input_shape[0] or 1))
    except Exception as error:
        raise ModelError(
            f"expected a model that takes [1,3,{size[0]},{size[1]}], got: {first_line(error)}"
        ) from error
    output = find_logits(outputs, folder.num_classes, folder.card.output, size)
    values = outputs[output.name].astype(np.float32)
    check_activation(output.planes(values), output.activation)
    logits = output.to_logits(values[:1])
    warning = magnitude_warning(logits)
    return LogitsBackbone(network, output), logits, () if warning is None else (warning,)


def check_size(network: Network, policy: InputPolicy, size: Size) -> None:
    """Raise ModelError where a file was exported for another height or width than `size`."""
    fixed = network.input_shape[2] or size[0], network.input_shape[3] or size[1]
    if fixed == size:
        return
    multiple = policy.multiple_of
    padding = any(side % multiple for side in fixed)
    raise ModelError(
        f"expected a model that takes [1,3,{size[0]},{size[1]}], got one exported for "
        f"[1,3,{fixed[0]},{fixed[1]}] only: set size = {list(fixed)} in the card "
        f'(--size {fixed[0]} {fixed[1]}), or mode = "slide" with crop = {list(fixed)} '
        f"(--mode slide)" + (", with a multiple_of that divides both" if padding else "")
    )


def grey(size: Size) -> Tensor:
    """Return an input float32 [1,3,h,w] of the value 0.5."""
    return torch.full((1, 3, *size), 0.5)


def find_min_size(predictor: Predictor, crop: Size, grid: Size) -> Size:
    """Find the smallest input that a network takes, given its grid (h, w) for a whole crop.

    It is the crop for a network exported for one size, else (1, 1). Raises ModelError where windows
    that begin at multiples of `multiple_of` do not begin at cells of the grid.
    """
    multiple = predictor.folder.card.input.multiple_of
    if any(multiple * grid[axis] % crop[axis] for axis in (0, 1)):
        raise ModelError(
            f"{predictor.folder.card.name}: expected multiple_of to be a multiple of the network's "
            f"cells, got {multiple} and a grid of {grid} for a crop of {crop}"
        )
    try:
        smallest = predictor.logits(grey((multiple, multiple))).shape[2:]
    except Exception:  # backbones raise their runtimes' own exceptions for an unsupported size
        return crop
    fits = all(smallest[axis] * crop[axis] == grid[axis] * multiple for axis in (0, 1))
    return (1, 1) if fits else crop
