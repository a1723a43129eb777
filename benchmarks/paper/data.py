"""Images of the study, split into parts, and a backbone's logits on them, stored in files.

Backbones are trained on CamVid's drive 0016E5, on the nuclei's or on the field's `train` images.
Their calibrators are fitted on the part `fit`. The parts `dev` and `dev shift` serve to choose
between variants (`benchmarks.paper.ablation`) and are not reported; `test`, `shift` and `corrupted`
are reported, and nothing is chosen on them.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from app.calibration.dataset import IGNORE, InMemory, LabelledImage
from benchmarks.paper.corruptions import KINDS as UNSEEN_KINDS
from benchmarks.paper.corruptions import corrupted
from benchmarks.paper.seen_corruptions import KINDS, corrupt
from training.data import CAMVID, FIELD, NUCLEI, VOID, Frame, LabelledSet
from training.train import padded_image

DAY, DUSK = "0006R0", "0001TP"  # CamVid's other two drives
BLOCK = 8  # consecutive frames of a drive that are one unit of the intervals
CELL = 4  # pixels to a side of the cells whose logits are kept


@dataclass(frozen=True)
class Part:
    """Labelled images that serve one purpose; `units` are those resampled by the intervals.

    Frames of a drive are resampled in blocks of eight; the corrupted copies of a frame belong to
    its unit.
    """

    name: str
    frames: Sequence[Frame]
    units: Sequence[int]

    def every(self, step: int, start: int, name: str) -> "Part":
        """Return every `step`-th image from `start` on as another part."""
        return Part(name, self.frames[start::step], self.units[start::step])


def parts(data: LabelledSet, folder: Path) -> Iterator[Part]:
    """Yield the parts of one of the three sets of images."""
    if data is CAMVID:
        day, val, dusk = (
            Part("", frames, [index // BLOCK for index in range(len(frames))])
            for frames in (
                data.frames(folder, "train", (DAY,)),
                data.frames(folder, "val"),
                data.frames(folder, "train", (DUSK,)),
            )
        )
        yield val.every(4, 0, "dev shift")
        yield dusk.every(1, 0, "shift")
        yield from in_domain(day)
    elif data is NUCLEI:
        stained = images(data, folder, "shift")
        yield stained.every(2, 0, "dev shift")
        yield stained.every(2, 1, "shift")
        yield from in_domain(images(data, folder, "val"))
    elif data is FIELD:  # twelve images: none can be spared for development
        field = images(data, folder, "val")
        yield from with_copies(field.every(2, 0, "fit"))
        yield from with_corrupted(field.every(2, 1, "test"))


def images(data: LabelledSet, folder: Path, part: str) -> Part:
    """Read images that do not depend on each other."""
    frames = data.frames(folder, part)
    return Part("", frames, range(len(frames)))


def in_domain(whole: Part) -> Iterator[Part]:
    """Yield half of the images as `fit`, a quarter each as `dev` and `test`, and `corrupted`."""
    yield from with_copies(whole.every(2, 0, "fit"))
    yield whole.every(4, 1, "dev")
    yield from with_corrupted(whole.every(4, 3, "test"))


def with_copies(fit: Part) -> Iterator[Part]:
    """Yield the images of the fit, and one corrupted copy of each; see `seen_corruptions`."""
    yield fit
    copies = [
        Frame(corrupt(frame.image, kind, 1 + index % 5, index), frame.label)
        for index, (frame, kind) in enumerate(zip(fit.frames, cycle(KINDS)))
    ]
    yield Part("fit copies", copies, fit.units)


def with_corrupted(test: Part) -> Iterator[Part]:
    """Yield the images and one copy under each kind of corruption."""
    yield test
    copies = [
        Frame(corrupted(frame.image, kind), frame.label)
        for kind in UNSEEN_KINDS
        for frame in test.frames
    ]
    yield Part("corrupted", copies, list(test.units) * len(UNSEEN_KINDS))


@dataclass(frozen=True)
class StoredPart(InMemory):
    """A part's logits, labels and mean colours of cells, in memory, with the unit of each image."""

    units: Sequence[int]


def joined(first: StoredPart, second: StoredPart) -> StoredPart:
    """Join two parts' images."""
    return StoredPart(
        first.num_classes, [*first.images, *second.images], [*first.units, *second.units]
    )


def stored_parts(
    network: nn.Module,
    data: LabelledSet,
    images_folder: Path,
    cache: Path,
    part_names: Container[str] | None = None,
) -> dict[str, StoredPart]:
    """Run a network on some or all parts, or read what an earlier run stored in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    marker = cache / "complete"
    if not marker.is_file():
        for part in parts(data, images_folder):
            if part_names is None or part.name in part_names:
                save(network, part, cache / f"{part.name.replace(' ', '-')}.npz")
        marker.touch()
    stored = (path.stem for path in sorted(cache.glob("*.npz")))
    return {name.replace("-", " "): read(cache / f"{name}.npz") for name in stored}


def save(network: nn.Module, part: Part, path: Path) -> None:
    """Write the logits of a part's images, float16, with their labels and mean colours."""
    arrays: dict[str, NDArray[np.generic]] = {"units": np.array(part.units)}
    for index, frame in enumerate(part.frames):
        arrays[f"logits_{index}"] = logits_of(network, frame)
        arrays[f"labels_{index}"] = labels_of(frame)
        arrays[f"colours_{index}"] = colours_of(frame)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes allow_pickle for an array


def read(path: Path) -> StoredPart:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        units = arrays["units"].tolist()
        found = []
        for index in range(len(units)):
            labels = torch.from_numpy(arrays[f"labels_{index}"].astype(np.int64))
            found.append(
                LabelledImage(
                    torch.from_numpy(arrays[f"logits_{index}"].astype(np.float32)),
                    labels.where(labels != VOID, IGNORE),
                    torch.from_numpy(arrays[f"colours_{index}"]),
                )
            )
    return StoredPart(found[0].logits.shape[0], found, units)


@torch.inference_mode()
def logits_of(network: nn.Module, frame: Frame) -> NDArray[np.float16]:
    """Compute the network's logits of one frame at the cells' centres, float16 [K,h,w]."""
    padded = padded_image(frame.image)
    logits = network(padded)[0]
    stride = padded.shape[-1] // logits.shape[-1]
    height, width = (side // CELL for side in frame.label.shape)
    step, start = CELL // stride, CELL // stride // 2
    kept: NDArray[np.float16] = (
        logits[:, start::step, start::step][:, :height, :width].half().numpy()
    )
    return kept


def labels_of(frame: Frame) -> NDArray[np.uint8]:
    """Return the label at the centre of each cell, uint8 [h,w]."""
    height, width = (side // CELL for side in frame.label.shape)
    return np.ascontiguousarray(frame.label[CELL // 2 :: CELL, CELL // 2 :: CELL][:height, :width])


def colours_of(frame: Frame) -> NDArray[np.uint8]:
    """Return the mean colour of each cell, uint8 [3,h,w]."""
    height, width = (side // CELL for side in frame.label.shape)
    small = Image.fromarray(frame.image[: height * CELL, : width * CELL]).reduce(CELL)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
