"""A backbone's logits on every group of images, kept in files so that methods can share them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.calibration.dataset import IGNORE, LabelledImage
from benchmarks.paper.scenes import Group
from training.data import VOID, Frame
from training.network import NetworkShape, PyramidNet

STEP = 2  # of the logits' grid: every second cell each way, a quarter of the image's resolution
STRIDE = 2  # of the logits


@dataclass(frozen=True)
class StoredSet:
    """A group's logits float16 [N,K,h,w] in a file that is mapped, with labels uint8 [N,h,w].

    `images` uint8 [N,3,h,w] are on the same grid. `weather` are other sets of the same images,
    spoiled, for methods that learn from those.
    """

    logits: Path
    labels: Path
    images: Path
    weather: tuple["StoredSet", ...] = ()

    @property
    def num_classes(self) -> int:
        """Count the classes."""
        return int(self._logits().shape[1])

    def __len__(self) -> int:
        return int(self._logits().shape[0])

    def __getitem__(self, index: int) -> LabelledImage:
        logits = torch.from_numpy(self._logits()[index].astype(np.float32))
        labels = torch.from_numpy(np.load(self.labels, mmap_mode="r")[index].astype(np.int64))
        image = torch.from_numpy(np.load(self.images, mmap_mode="r")[index].copy())
        return LabelledImage(logits, labels.where(labels != VOID, IGNORE), image)

    def copies(self, index: int) -> Sequence[LabelledImage]:
        """Read one image's copies under other weather."""
        return [other[index] for other in self.weather]

    def with_weather(self, weather: Sequence["StoredSet"]) -> "StoredSet":
        """Add copies under other weather."""
        return replace(self, weather=tuple(weather))

    def _logits(self) -> NDArray[np.float16]:
        mapped: NDArray[np.float16] = np.load(self.logits, mmap_mode="r")
        return mapped


def open_network(weights: Path) -> PyramidNet:
    """Load a training run's averaged weights; raises FileNotFoundError with how to make them."""
    if not weights.is_file():
        raise FileNotFoundError(
            f"expected the weights {weights} (docs/paper.md says how to make them), got no file"
        )
    network = PyramidNet(NetworkShape()).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def store(network: PyramidNet, group: Group, folder: Path) -> StoredSet:
    """Run a network over a group, or find what an earlier run left."""
    folder.mkdir(parents=True, exist_ok=True)
    name = group.name.replace(" ", "-")
    kinds = ("logits", "labels", "images")
    logits, labels, images = (folder / f"{name}.{kind}.npy" for kind in kinds)
    stored = StoredSet(logits, labels, images)
    if not stored.labels.is_file():
        np.save(stored.logits, np.stack([logits_of(network, frame) for frame in group.frames]))
        np.save(stored.labels, np.stack([labels_of(frame) for frame in group.frames]))
    if not stored.images.is_file():
        np.save(stored.images, np.stack([image_of(frame) for frame in group.frames]))
    return stored


@torch.inference_mode()
def logits_of(network: PyramidNet, frame: Frame) -> NDArray[np.float16]:
    """Run a network over one image: float16 [K,h,w]."""
    planes = torch.from_numpy(frame.image.transpose(2, 0, 1).copy()).float().div(255)[None]
    height, width = frame.label.shape
    padding = (0, -width % 32, 0, -height % 32)
    logits = network(torch.nn.functional.pad(planes, padding, mode="replicate"))[0]
    inside = logits[:, : height // STRIDE : STEP, : width // STRIDE : STEP]
    kept: NDArray[np.float16] = inside.half().numpy()
    return kept


def image_of(frame: Frame) -> NDArray[np.uint8]:
    """Take the mean colours about each kept cell: uint8 [3,h,w]."""
    height, width = (-(-(side // STRIDE) // STEP) for side in frame.label.shape)
    small = Image.fromarray(frame.image).resize((width, height), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def labels_of(frame: Frame) -> NDArray[np.uint8]:
    """Take the label at the centre of each kept cell."""
    step, half = STRIDE * STEP, STRIDE // 2
    return np.ascontiguousarray(frame.label[half::step, half::step])
