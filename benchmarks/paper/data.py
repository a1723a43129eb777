"""Images of the study and the logits of a backbone on them, stored in files.

The backbones were trained on group 0016E5 only. Calibrators are fitted on every second frame of
group 0006R0 and measured on the others (the same day), on group 0001TP (dusk, another day), on
rendered streets by night, in fog and rain, and on corrupted copies of the held-out frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.calibration.dataset import IGNORE, LabelledImage
from app.imaging.corruptions import KINDS, STRENGTHS, corrupt
from training.data import VOID, Frame, load_frames
from training.network import NetworkShape, PyramidNet
from training.scenes import render_scene

FIT_GROUP, DUSK_GROUP = "0006R0", "0001TP"
RENDERED_CONDITIONS = ("night", "fog", "rain")
RENDERED_SEED, RENDERED_COUNT = 900_000, 24
CORRUPTED_EVERY = 3  # of the held-out frames: neighbouring frames are alike
SUBSAMPLING = 2  # of the logits' grid each way: a quarter of the image's resolution
STRIDE = 2  # of the logits


@dataclass(frozen=True)
class ImageSet:
    """Images that are measured together; `kind` is their corruption, if any."""

    name: str
    frames: Sequence[Frame]
    kind: str | None = None


def image_sets(root: Path) -> Iterator[ImageSet]:
    """Yield the images of the fit, their corrupted copies, and the measured images."""
    day = load_frames(root / "train", root / "trainannot", (FIT_GROUP,))
    fit, held_out = day[::2], day[1::2]
    yield ImageSet("fit", fit)
    for kind in KINDS:  # one copy of each kind for each image; its number determines the strength
        yield ImageSet(f"fit {kind}", [
            corrupted(frame, kind, STRENGTHS[number * 2 % 5], number)
            for number, frame in enumerate(fit)
        ], kind)  # fmt: skip
    yield ImageSet("day", held_out)
    yield ImageSet("dusk", load_frames(root / "train", root / "trainannot", (DUSK_GROUP,)))
    for place, condition in enumerate(RENDERED_CONDITIONS):
        seeds = range(RENDERED_SEED + 1000 * place, RENDERED_SEED + 1000 * place + RENDERED_COUNT)
        yield ImageSet(f"rendered {condition}", [rendered(seed, condition) for seed in seeds])
    for kind in KINDS:
        for strength in STRENGTHS:
            yield ImageSet(f"{kind} {strength}", [
                corrupted(frame, kind, strength, 10_000 + number)
                for number, frame in enumerate(held_out[::CORRUPTED_EVERY])
            ], kind)  # fmt: skip


def corrupted(frame: Frame, kind: str, strength: int, seed: int) -> Frame:
    """Corrupt a frame's image; its labels stay."""
    return Frame(corrupt(frame.image, kind, strength, seed), frame.label)


def rendered(seed: int, condition: str) -> Frame:
    """Render one street scene."""
    scene = render_scene(seed, condition=condition)
    return Frame(np.asarray(scene.image), np.asarray(scene.label))


@dataclass(frozen=True)
class StoredSet:
    """Logits float16 [N,K,h,w] in a memory-mapped file, with labels uint8 [N,h,w].

    `images` uint8 [N,3,h,w] are on the same grid. `augmented` are sets of the same images,
    corrupted, for methods that are fitted on those as well.
    """

    logits: Path
    labels: Path
    images: Path
    augmented: tuple["StoredSet", ...] = ()

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return int(self._logits().shape[1])

    def __len__(self) -> int:
        return int(self._logits().shape[0])

    def __getitem__(self, index: int) -> LabelledImage:
        logits = torch.from_numpy(self._logits()[index].astype(np.float32))
        labels = torch.from_numpy(np.load(self.labels, mmap_mode="r")[index].astype(np.int64))
        image = torch.from_numpy(np.load(self.images, mmap_mode="r")[index].copy())
        return LabelledImage(logits, labels.where(labels != VOID, IGNORE), image)

    def copies(self, index: int) -> Sequence[LabelledImage]:
        """Return one image's corrupted copies."""
        return [other[index] for other in self.augmented]

    def with_augmented(self, augmented: Sequence["StoredSet"]) -> "StoredSet":
        """Return this set with corrupted copies."""
        return replace(self, augmented=tuple(augmented))

    def _logits(self) -> NDArray[np.float16]:
        mapped: NDArray[np.float16] = np.load(self.logits, mmap_mode="r")
        return mapped


def open_network(weights: Path) -> PyramidNet:
    """Load a training run's averaged weights; raises FileNotFoundError."""
    if not weights.is_file():
        raise FileNotFoundError(
            f"expected the weights {weights} (docs/paper.md says how to make them), got no file"
        )
    network = PyramidNet(NetworkShape()).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def store(network: PyramidNet, images: ImageSet, folder: Path) -> StoredSet:
    """Run a network on images, unless an earlier run stored its logits."""
    folder.mkdir(parents=True, exist_ok=True)
    name = images.name.replace(" ", "-")
    kinds = ("logits", "labels", "images")
    logits, labels, thumbnails = (folder / f"{name}.{kind}.npy" for kind in kinds)
    stored = StoredSet(logits, labels, thumbnails)
    if not stored.labels.is_file():
        np.save(stored.logits, np.stack([logits_of(network, frame) for frame in images.frames]))
        np.save(stored.labels, np.stack([labels_of(frame) for frame in images.frames]))
    if not stored.images.is_file():
        np.save(stored.images, np.stack([thumbnail_of(frame) for frame in images.frames]))
    return stored


@torch.inference_mode()
def logits_of(network: PyramidNet, frame: Frame) -> NDArray[np.float16]:
    """Return the network's subsampled logits of one frame, float16 [K,h,w]."""
    planes = torch.from_numpy(frame.image.transpose(2, 0, 1).copy()).float().div(255)[None]
    height, width = frame.label.shape
    padding = (0, -width % 32, 0, -height % 32)
    logits = network(torch.nn.functional.pad(planes, padding, mode="replicate"))[0]
    inside = logits[:, : height // STRIDE : SUBSAMPLING, : width // STRIDE : SUBSAMPLING]
    kept: NDArray[np.float16] = inside.half().numpy()
    return kept


def thumbnail_of(frame: Frame) -> NDArray[np.uint8]:
    """Return the mean colour of each kept cell, uint8 [3,h,w]."""
    height, width = (-(-(side // STRIDE) // SUBSAMPLING) for side in frame.label.shape)
    small = Image.fromarray(frame.image).resize((width, height), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def labels_of(frame: Frame) -> NDArray[np.uint8]:
    """Return the label at the centre of each kept cell, uint8 [h,w]."""
    step, half = STRIDE * SUBSAMPLING, STRIDE // 2
    return np.ascontiguousarray(frame.label[half::step, half::step])
