"""Load and augment labelled images: streets, nuclei and fields.

A frame is an 8-bit RGB image [H,W,3] with a label map uint8 [H,W]; 255 marks void pixels.
Geometry and colour are changed in 8 bits with Pillow, which takes less time on two cores than
floating-point arithmetic.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

VOID = 255

Bytes = NDArray[np.uint8]


class Frame(NamedTuple):
    """One labelled image: image uint8 [H,W,3], label uint8 [H,W], 255 where unlabelled."""

    image: Bytes
    label: Bytes


@dataclass(frozen=True)
class LabelledSet:
    """A set of labelled images: its classes, and the setting that holds its folder.

    `things` are the classes that copy-paste copies from one frame to another.
    """

    name: str
    classes: tuple[str, ...]
    things: tuple[int, ...] = ()

    @property
    def setting(self) -> str:
        """Return the name of the environment variable with the folder."""
        return f"{self.name.upper()}_DIR"

    def folder(self, argument: Path | None = None) -> Path:
        """Return the folder: the argument, else the setting's; raises FileNotFoundError."""
        folder = argument or os.environ.get(self.setting)
        if not folder or not (Path(folder) / "trainannot").is_dir():
            raise FileNotFoundError(
                f"expected a folder with train/ and trainannot/ ({self.setting}), got {folder!r}"
            )
        return Path(folder)

    def frames(self, folder: Path, part: str, groups: tuple[str, ...] = ()) -> list[Frame]:
        """Read a part's frames, of some groups or of all; see `load_frames`."""
        return load_frames(folder / part, folder / f"{part}annot", len(self.classes), groups)


CAMVID = LabelledSet(
    "camvid",
    ("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car",
     "pedestrian", "bicyclist"),
    things=(2, 6, 7, 8, 9, 10),
)  # fmt: skip
NUCLEI = LabelledSet("nuclei", ("background", "nucleus", "border"))
FIELD = LabelledSet("field", ("soil", "crop", "weed"))
SETS = {each.name: each for each in (CAMVID, NUCLEI, FIELD)}


def load_frames(
    images: Path, labels: Path, num_classes: int, groups: tuple[str, ...] = ()
) -> list[Frame]:
    """Read the frames of some groups (of all groups by default), sorted by file name.

    A group is one recording of CamVid; the file names start with it. Labels that are not a class
    become void.
    """
    frames = []
    for path in sorted(images.glob("*.png")):
        if groups and not path.name.startswith(groups):
            continue
        image = np.asarray(Image.open(path).convert("RGB"))
        label = np.asarray(Image.open(labels / path.name))
        frames.append(Frame(image, np.where(label < num_classes, label, VOID).astype(np.uint8)))
    return frames


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of the random changes to training images.

    `crop` is (height, width) in pixels, `scale` the range of the scale factor, `aspect` the largest
    stretch factor, `degrees` the largest rotation, `gain` to `hue_degrees` the strength of colour
    changes. `blur` to `mirror` are probabilities.
    """

    crop: tuple[int, int] = (256, 352)
    scale: tuple[float, float] = (0.6, 2.0)
    aspect: float = 1.15
    degrees: float = 4.0
    gain: float = 0.35  # exposure x 2^(-2 gain .. 1.5 gain), each channel x 2^(±gain/3)
    contrast: float = 0.4
    gamma: float = 0.4
    saturation: float = 0.6
    hue_degrees: float = 15.0
    blur: float = 0.15
    noise: float = 0.25
    shade: float = 0.25
    cutout: float = 0.3
    paste: float = 0.5
    mirror: float = 0.5

    @classmethod
    def basic(cls) -> "Augmentation":
        """Return the baseline: scale, crop, flip and mild colour jitter."""
        return cls(
            aspect=1.0, degrees=0.0, gain=0.15, contrast=0.2, gamma=0.0, saturation=0.2,
            hue_degrees=0.0, blur=0.0, noise=0.0, shade=0.0, cutout=0.0, paste=0.0,
        )  # fmt: skip

    @classmethod
    def none(cls) -> "Augmentation":
        """Return random crops only, with which a long run over-fits: for the calibration study."""
        return replace(
            cls.basic(), scale=(1.0, 1.0), gain=0.0, contrast=0.0, saturation=0.0, mirror=0.0
        )


class AugmentedFrames(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of augmented crops: image uint8 [3,h,w] RGB, label uint8 [h,w].

    An epoch has as many crops as there are frames.
    """

    def __init__(
        self,
        frames: list[Frame],
        augmentations: Sequence[Augmentation],
        things: Sequence[int],
        seed: int,
    ) -> None:
        self.frames, self.augmentations = frames, augmentations
        self.things, self.seed, self.epoch = things, seed, 0

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one augmented crop, the same for the same seed, epoch and index."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        chosen = self.augmentations[int(rng.integers(len(self.augmentations)))]
        frame = self.frames[index]
        if self.things and rng.random() < chosen.paste:
            donor = self.frames[rng.integers(len(self.frames))]
            frame = paste_things(frame, donor, self.things, rng)
        image, label = augment(frame, chosen, rng)
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label)


def paste_things(
    frame: Frame, donor: Frame, things: Sequence[int], rng: np.random.Generator
) -> Frame:
    """Paste the pixels of random thing classes of `donor` into a frame of the same size.

    Their rows stay; they are shifted sideways by at most 60 pixels and mirrored half the time.
    """
    chosen = [c for c in things if rng.random() < 0.5]
    image, label = donor
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    shift = int(rng.integers(-60, 61))
    image, label = np.roll(image, shift, 1), np.roll(label, shift, 1)
    mask = np.isin(label, chosen)
    return Frame(np.where(mask[..., None], image, frame.image), np.where(mask, label, frame.label))


def augment(
    frame: Frame, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """Change geometry and colours of one frame: image uint8 [h,w,3] and label uint8 [h,w]."""
    warped, label = _warp(frame, augmentation, rng)
    warped = _recolour(warped, augmentation, rng)
    if rng.random() < augmentation.blur:
        warped = warped.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.4)))
    image = np.array(warped)
    if rng.random() < augmentation.shade:
        image = _shade(image, rng)
    if rng.random() < augmentation.noise:
        sigma = rng.uniform(2, 14)
        noisy = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
        image = np.clip(noisy, 0, 255).astype(np.uint8)
    if rng.random() < augmentation.cutout:
        _cut_out(image, label, rng)
    return image, label


def _warp(
    frame: Frame, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Image.Image, Bytes]:
    """Scale, stretch, rotate, mirror and crop with one resampling; void outside the frame."""
    height, width = augmentation.crop
    source_height, source_width = frame.label.shape
    scale = float(np.exp(rng.uniform(*np.log(augmentation.scale))))
    stretch = float(np.exp(rng.uniform(-1, 1) * np.log(augmentation.aspect)))
    angle = np.deg2rad(rng.uniform(-augmentation.degrees, augmentation.degrees))
    mirror = -1.0 if rng.random() < augmentation.mirror else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([mirror / (scale * stretch), stretch / scale])
    extent = np.abs(matrix) @ np.array([width / 2, height / 2])
    slack = np.maximum(np.array([source_width, source_height]) / 2 - extent, 0)
    middle = np.array([source_width, source_height]) / 2 + rng.uniform(-1, 1, 2) * slack
    offset = middle - matrix @ np.array([width / 2, height / 2])
    data = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    image = Image.fromarray(frame.image)
    if scale < 0.8:  # without a low-pass filter a reduced image is aliased
        image = image.filter(ImageFilter.BoxBlur(0.5 / scale - 0.5))
    affine = Image.Transform.AFFINE
    grey = (110, 110, 110)
    image = image.transform(
        (width, height), affine, data, Image.Resampling.BILINEAR, fillcolor=grey
    )
    label = Image.fromarray(frame.label).transform(
        (width, height), affine, data, Image.Resampling.NEAREST, fillcolor=VOID
    )
    return image, np.array(label)


def _recolour(
    image: Image.Image, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
    """Change hue and saturation by a matrix; gain, contrast and gamma by a look-up table."""
    hue = np.deg2rad(rng.uniform(-augmentation.hue_degrees, augmentation.hue_degrees))
    saturation = 1 + rng.uniform(-augmentation.saturation, augmentation.saturation * 0.6)
    luma = np.array([0.299, 0.587, 0.114])
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.cos(hue) * np.eye(3) + np.sin(hue) * cross
    rotation = rotation + (1 - np.cos(hue)) * np.outer(axis, axis)
    matrix = saturation * rotation + (1 - saturation) * luma[None, :]
    rows = np.concatenate([matrix, np.zeros((3, 1))], axis=1)
    image = image.convert("RGB", tuple(rows.ravel()))
    gamma = float(np.exp(rng.uniform(-augmentation.gamma, augmentation.gamma)))
    contrast = 1 + rng.uniform(-augmentation.contrast, augmentation.contrast)
    exposure = 2.0 ** rng.uniform(-2 * augmentation.gain, 1.5 * augmentation.gain)
    tint = 2.0 ** rng.uniform(-augmentation.gain / 3, augmentation.gain / 3, 3)
    levels = np.linspace(0, 1, 256) ** gamma
    tables = [(levels * exposure * t - 0.45) * contrast + 0.45 for t in tint]
    return image.point(np.clip(np.concatenate(tables) * 255, 0, 255).astype(int).tolist())


def _shade(image: Bytes, rng: np.random.Generator) -> Bytes:
    """Blend an image uint8 [h,w,3] with one grey level by a smooth random opacity."""
    height, width = image.shape[:2]
    field = Image.fromarray(rng.uniform(0, 255, (4, 5)).astype(np.uint8))
    alpha = np.asarray(field.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    alpha *= np.float32(rng.uniform(0.2, 0.65) / 255)
    level = np.float32(rng.choice([rng.uniform(0, 40), rng.uniform(150, 255)]))
    mixed = image * (1 - alpha[..., None]) + level * alpha[..., None]
    return mixed.astype(np.uint8)


def _cut_out(image: Bytes, label: Bytes, rng: np.random.Generator) -> None:
    """Fill one to three boxes with a colour, in place; their label is void."""
    height, width = label.shape
    for _ in range(int(rng.integers(1, 4))):
        h, w = int(rng.integers(12, 72)), int(rng.integers(12, 72))
        y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3, dtype=np.uint8)
        label[y : y + h, x : x + w] = VOID
