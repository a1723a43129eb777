"""Read folders of images with label maps."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.calibration.dataset import IGNORE
from app.errors import ArgumentError, InputError
from app.imaging.decode import check_size, decode_image
from app.imaging.tiff_bands import UNSCALED, Scaling
from app.schemas.service import IMAGE_ENDINGS
from app.storage.object_files import ImageFile

# Lossless formats only. Pillow's other decoders are never reached; that of EPS runs a program.
LABEL_FORMATS = ("PNG", "TIFF", "BMP")
HASH_DIGITS = 16  # 64 bits: of a million images no two are expected to share a hash
F = TypeVar("F", bound=ImageFile)
F_co = TypeVar("F_co", bound=ImageFile, covariant=True)


class ImageFolder(Protocol[F_co]):
    """A folder, or a prefix of a bucket."""

    def is_dir(self) -> bool:
        """Return whether it can be listed."""

    def iterdir(self) -> Iterator[F_co]:
        """Yield the files in it, and names of folders."""


@dataclass(frozen=True)
class Pair:
    """The files of an image and of its label map."""

    image: ImageFile
    labels: ImageFile

    def resolve(self) -> "Pair":
        """Return the pair with absolute paths."""
        return Pair(self.image.resolve(), self.labels.resolve())


def find_pairs(images: ImageFolder[ImageFile], labels: ImageFolder[ImageFile]) -> list[Pair]:
    """Match images and label maps by file stem; raises ArgumentError unless all match."""
    image_files, label_files = images_by_stem(images), images_by_stem(labels)
    unmatched = sorted(set(image_files) ^ set(label_files))
    if not image_files or unmatched:
        raise ArgumentError(
            f"expected a label map for each image, by file stem, got {len(image_files)} images, "
            f"{len(label_files)} label maps, and {len(unmatched)} without a partner, such as "
            f"{unmatched[:3]}"
        )
    return [Pair(image_files[stem], label_files[stem]) for stem in sorted(image_files)]


def find_masks(folder: Path, pairs: Sequence[Pair]) -> dict[Pair, Path]:
    """Match masks and images by file stem; raises ArgumentError unless each image has a mask."""
    masks = images_by_stem(folder)
    missing = [pair.image.stem for pair in pairs if pair.image.stem not in masks]
    if missing:
        raise ArgumentError(
            f"expected a mask for each of {len(pairs)} images in {folder}, by file stem, got none "
            f"for {len(missing)}, such as {missing[:3]}"
        )
    return {pair: masks[pair.image.stem] for pair in pairs}


def images_by_stem(folder: ImageFolder[F]) -> dict[str, F]:
    """List a folder's images by stem, sorted; raises ArgumentError where two have one stem."""
    if not folder.is_dir():
        raise ArgumentError(f"expected a folder, got {folder}")
    found: dict[str, F] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix.lower() not in IMAGE_ENDINGS:
            continue
        if path.stem in found:
            raise ArgumentError(
                f"expected one file for each stem, got {found[path.stem].name} and {path.name}"
            )
        found[path.stem] = path
    return found


def read_image(path: ImageFile, max_pixels: int, scaling: Scaling = UNSCALED) -> NDArray[np.uint8]:
    """Decode an image file to uint8 RGB [H,W,3]; raises InputError that names the file."""
    try:
        return decode_image(path.read_bytes(), max_pixels, scaling)
    except InputError as error:
        raise type(error)(f"{path.name}: {error}") from error


def content_hash(path: ImageFile) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:HASH_DIGITS]


def read_labels_for(
    pair: Pair,
    size: tuple[int, int],
    num_classes: int,
    ignore_index: int,
    max_pixels: int,
    *,
    reduce_zero: bool,
) -> NDArray[np.int32]:
    """Read the label map int32 [H,W] of an image, with IGNORE for void (see `checked`).

    Raises ArgumentError for another size than the image's (H, W) and for labels out of range.
    """
    labels = read_labels(pair.labels, max_pixels)
    if labels.shape != size:
        raise ArgumentError(
            f"{pair.labels.name}: expected labels of {size} (height, width), got {labels.shape}"
        )
    return checked(labels, num_classes, ignore_index, pair.labels.name, reduce_zero=reduce_zero)


def read_mask(path: Path, size: tuple[int, int], max_pixels: int) -> NDArray[np.bool_]:
    """Read a mask bool [H,W] from an indexed or grey image, false where its value is 0.

    Raises ArgumentError for another size than (H, W), and as `read_labels` does.
    """
    values = read_labels(path, max_pixels)
    if values.shape != size:
        raise ArgumentError(
            f"{path.name}: expected a mask of {size} (height, width), got {values.shape}"
        )
    mask: NDArray[np.bool_] = values != 0
    return mask


def read_labels(path: ImageFile, max_pixels: int) -> NDArray[np.int32]:
    """Read a label map int32 [H,W] from an indexed or grey PNG, TIFF or BMP of class ids.

    Raises ArgumentError for other files and TooLargeError above `max_pixels`.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=LABEL_FORMATS) as image:
            check_size(image.size, max_pixels)
            _check_grey(image.mode, path.name)
            return np.asarray(image).astype(np.int32)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise ArgumentError(
            f"{path.name}: expected a label map, got: {len(data)} bytes that are no PNG, TIFF or "
            f"BMP image"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise ArgumentError(f"{path.name}: expected a label map, got: {error}") from error


def checked(
    labels: NDArray[np.int32],
    num_classes: int,
    ignore_index: int,
    name: str,
    *,
    reduce_zero: bool = False,
) -> NDArray[np.int32]:
    """Replace the void value of labels by IGNORE; with `reduce_zero` 0 too, and 1 is class 0.

    Raises ArgumentError for labels out of range.
    """
    void = (labels == ignore_index) | (labels == 0) if reduce_zero else labels == ignore_index
    first = int(reduce_zero)
    classes = np.where(void, IGNORE, labels - first)
    if classes.min() < IGNORE or classes.max() >= num_classes:
        voids = f"0 or {ignore_index}" if reduce_zero else f"{ignore_index}"
        raise ArgumentError(
            f"{name}: expected labels in {first}..{num_classes - 1 + first} or {voids} for void, "
            f"got {labels[~void].min()}..{labels[~void].max()}"
        )
    return classes


def _check_grey(mode: str, name: str) -> None:
    if mode not in ("P", "L", "1", "I", "I;16", "I;16B"):
        raise ArgumentError(f"{name}: expected an indexed or grey label map, got mode {mode}")
