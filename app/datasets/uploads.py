"""Unpack, validate and open an upload of validation data.

An upload is a folder with the fields of a request as files: `logits`, `labels`, `image_index` and
`group_index` (.npy, .npz or .safetensors), or `images` and `labels` (zip archives) and
`group_index` (.npy). `unpack` converts it, once, to files under names of the service:

    <name>.npy | <name>.safetensors                     arrays
    image_files/<n>.png  label_files/<n>.png            images; <n> is the position of the stem
    image_names.json                                    the client's stems, sorted
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from zipfile import ZipFile, ZipInfo

from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from app.calibration.dataset import ValidationSet
from app.datasets.archives import ByteBudget, extract, files_in, open_archive
from app.datasets.arrays import ArrayFile, kind_of, open_npy, open_safetensors
from app.datasets.images import (
    checked,
    find_pairs,
    images_by_stem,
    read_labels,
)
from app.datasets.logits import Contents, open_logits, require_images
from app.datasets.parsing import parsing
from app.datasets.stored_logits import CachedLogits
from app.datasets.void_labels import find_void_label
from app.errors import ArgumentError, InputError, TooLargeError, UndecodableError
from app.imaging import tiff_bands
from app.imaging.decode import FORMATS, check_size
from app.inference.predictor import Predictor
from app.schemas.service import IMAGE_ENDINGS

T = TypeVar("T")

IMAGE_FILES, LABEL_FILES, NAMES = "image_files", "label_files", "image_names.json"
GROUP_INDEX = "group_index"
ARRAYS = ("logits", "labels", "image_index", GROUP_INDEX)
FIELDS = (*ARRAYS, "images")
PART_VALUES = 1 << 22
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap the sides


@dataclass(frozen=True)
class Limits:
    """Limits of an upload: bytes once unpacked, and bytes and pixels of one image."""

    unpacked_bytes: int
    image_bytes: int
    image_pixels: int


def has_images(folder: Path) -> bool:
    """Return whether an unpacked folder holds images instead of arrays."""
    return (folder / IMAGE_FILES).is_dir()


def unpack(folder: Path, limits: Limits) -> None:
    """Unpack a folder in place, within the limits, and remove the packed files.

    Raises UndecodableError, ArgumentError, TooLargeError and StorageError.
    """
    with parsing("an upload"):
        if (folder / "images").exists():
            _unpack_images(folder, limits)
            if (folder / GROUP_INDEX).exists():
                _unpack_array(folder, GROUP_INDEX)
        else:
            _unpack_arrays(folder, ByteBudget(limits.unpacked_bytes))


def void_label(
    folder: Path, given: int | None, of_card: int, num_classes: int, max_pixels: int
) -> int:
    """Return the label of void pixels in an unpacked folder: as given, or as its labels show.

    See `find_void_label` for the latter. Raises ArgumentError and TooLargeError.
    """
    if given is not None:
        return given
    maps = _label_maps(folder, max_pixels)
    return _with_names(folder, lambda: find_void_label(maps, of_card, num_classes))


def check(
    folder: Path,
    num_classes: int,
    ignore_index: int,
    limits: Limits,
    *,
    reduce_zero: bool = False,
) -> Contents:
    """Validate an unpacked folder in one pass over its labels and logits, and count its contents.

    Of images only the headers are read. `reduce_zero` holds for label maps (see `images.checked`);
    arrays of labels have class ids. Raises ArgumentError, TooLargeError and UndecodableError.
    """
    with parsing("an upload"):
        if not has_images(folder):
            return open_logits(_arrays(folder), num_classes, ignore_index).check()
        options = num_classes, ignore_index, limits
        return _with_names(folder, lambda: _check_images(folder, *options, reduce_zero=reduce_zero))


def open_upload(
    folder: Path,
    num_classes: int,
    ignore_index: int,
    max_pixels: int,
    predictor: Callable[[], Predictor],
    progress: Callable[[str, float], None],
) -> ValidationSet:
    """Open an unpacked folder as a validation set.

    Only for images, `predictor` is called and their logits are computed, with `progress` in 0..1.
    Raises InputError.
    """
    if not has_images(folder):
        return open_logits(_arrays(folder), num_classes, ignore_index)
    pairs = find_pairs(folder / IMAGE_FILES, folder / LABEL_FILES)
    groups = image_groups(folder / f"{GROUP_INDEX}.npy", len(pairs))
    return _with_names(
        folder,
        lambda: CachedLogits(predictor(), pairs, ignore_index, max_pixels, progress, groups),
    )


def image_groups(path: Path | None, count: int) -> Sequence[int]:
    """Read `group_index` [N] of images in the order of their stems, from a .npy file.

    Without one each image is a group by itself. Raises ArgumentError for any other array.
    """
    if path is None or not path.exists():
        return range(count)
    array = open_npy(path, GROUP_INDEX)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise ArgumentError(
            f"expected {GROUP_INDEX} of integers [{count}], one for each image by stem, got {array}"
        )
    groups: list[int] = array.map().tolist()
    return groups


def _label_maps(folder: Path, max_pixels: int) -> Iterator[NDArray[Any]]:
    """Iterate over the labels of an unpacked folder, by file or in parts of 4 M values."""
    if has_images(folder):
        for path in images_by_stem(folder / LABEL_FILES).values():
            yield read_labels(path, max_pixels)
    elif (array := _arrays(folder).get("labels")) is not None:
        size = max(PART_VALUES // math.prod(array.shape[1:]), 1)
        for start in range(0, array.shape[0], size):
            yield array.map()[start : start + size]


def _unpack_images(folder: Path, limits: Limits) -> None:
    """Unpack the archives of images and label maps into files numbered by stem.

    Raises ArgumentError unless both archives hold the same stems, at least two.
    """
    if not (folder / "labels").exists() or (folder / "logits").exists():
        raise ArgumentError("expected images with labels and nothing else, as two zip archives")
    for name in ("images", "labels"):
        if kind_of(folder / name, name) != "zip":
            raise UndecodableError(f"{name}: expected a zip archive, got another kind of file")
    budget = ByteBudget(limits.unpacked_bytes)
    with (
        open_archive(folder / "images", "images") as image_archive,
        open_archive(folder / "labels", "labels") as label_archive,
    ):
        image_entries, label_entries = (
            _images_in(image_archive, "images"),
            _images_in(label_archive, "labels"),
        )
        stems = _common_stems(image_entries, label_entries)
        for archive, entries, target in (
            (image_archive, image_entries, IMAGE_FILES),
            (label_archive, label_entries, LABEL_FILES),
        ):
            (folder / target).mkdir()
            for number, stem in enumerate(stems):
                _check_bytes(entries[stem].file_size, stem[:80], limits)
                ending = PurePosixPath(entries[stem].filename).suffix.lower()
                extract(archive, entries[stem], folder / target / f"{number:06d}{ending}", budget)
    (folder / NAMES).write_text(json.dumps(stems), "utf-8")
    (folder / "images").unlink()
    (folder / "labels").unlink()


def _images_in(archive: ZipFile, name: str) -> dict[str, ZipInfo]:
    """List an archive's images by stem, from all of its folders.

    Raises ArgumentError where two have one stem.
    """
    found: dict[str, ZipInfo] = {}
    for entry in files_in(archive, name):
        if not _is_image(entry.filename):
            continue
        stem = PurePosixPath(entry.filename).stem
        if stem in found:
            raise ArgumentError(f"{name}: expected one file for each stem, got {stem[:80]!r} twice")
        found[stem] = entry
    return found


def _is_image(filename: str) -> bool:
    """Return whether a file is an image and none that an operating system adds to archives."""
    path = PurePosixPath(filename)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return not hidden and path.suffix.lower() in IMAGE_ENDINGS


def _common_stems(images: Mapping[str, ZipInfo], maps: Mapping[str, ZipInfo]) -> list[str]:
    """Return the sorted stems; raises ArgumentError unless both have the same, at least two."""
    unmatched = sorted(set(images) ^ set(maps))
    if unmatched or len(maps) < 2:
        raise ArgumentError(
            f"expected a label map for each of at least 2 images, by file stem, got "
            f"{len(images)} images, {len(maps)} label maps, and {len(unmatched)} without a "
            f"partner, such as {[stem[:80] for stem in unmatched[:3]]}"
        )
    return sorted(images)


def _check_bytes(size: int, name: str, limits: Limits) -> None:
    """Raise TooLargeError for an image file of more bytes than the limit."""
    if size > limits.image_bytes:
        raise TooLargeError(f"{name}: expected at most {limits.image_bytes} bytes, got {size}")


def _check_images(
    folder: Path, num_classes: int, ignore_index: int, limits: Limits, *, reduce_zero: bool
) -> Contents:
    """Validate all label maps, the headers of the images and the groups; count the contents."""
    images = pixels = 0
    pairs = find_pairs(folder / IMAGE_FILES, folder / LABEL_FILES)
    image_groups(folder / f"{GROUP_INDEX}.npy", len(pairs))
    for pair in pairs:
        image = folder / IMAGE_FILES / pair.image.name
        _check_bytes(image.stat().st_size, image.name, limits)
        size = _upright_size(image, limits)
        raw = read_labels(pair.labels, limits.image_pixels)
        if raw.shape != size:
            raise ArgumentError(
                f"{pair.labels.name}: expected labels of {size} (height, width), got {raw.shape}"
            )
        labels = checked(raw, num_classes, ignore_index, pair.labels.name, reduce_zero=reduce_zero)
        labelled = int((labels >= 0).sum())
        images += labelled > 0
        pixels += labelled
    require_images(images)
    return Contents(images, pixels, maps=True)


def _upright_size(path: Path, limits: Limits) -> tuple[int, int]:
    """Read an image's height and width after EXIF rotation from its header.

    Raises TooLargeError above the limit and UndecodableError for other files.
    """
    try:
        return _header_size(path, limits)
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its message holds the path
        raise UndecodableError(
            f"{path.name}: expected an image, got {path.stat().st_size} bytes of another kind"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types for hostile bytes
        raise UndecodableError(f"{path.name}: expected an image, got: {error}") from error


def _header_size(path: Path, limits: Limits) -> tuple[int, int]:
    """Read the height and width of an image that Pillow opens, or of a TIFF of many bands."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.size, limits.image_pixels)
            width, height = image.size
            sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
            return (width, height) if sideways else (height, width)
    except UnidentifiedImageError:
        size = tiff_bands.read_size(path)
        if size is None:
            raise
        check_size(size[::-1], limits.image_pixels)
        return size


def _with_names(folder: Path, work: Callable[[], T]) -> T:
    """Call `work`; in an InputError that starts with a file's number, put the client's stem."""
    try:
        return work()
    except InputError as error:
        number, _, rest = str(error).partition(".")
        if not number.isdecimal():
            raise
        names = json.loads((folder / NAMES).read_text("utf-8"))
        raise type(error)(f"{names[int(number)][:80]}.{rest}") from error


def _unpack_arrays(folder: Path, budget: ByteBudget) -> None:
    """Unpack the arrays of a folder, within the budget of bytes."""
    for name in ARRAYS:
        packed = folder / name
        if not packed.exists():
            continue
        if kind_of(packed, name) == "zip":
            _unpack_npz(packed, name, budget)
        else:
            _unpack_array(folder, name)


def _unpack_array(folder: Path, name: str) -> None:
    """Add the ending of its kind to an array's file; raises ArgumentError if that file exists."""
    kind = kind_of(folder / name, name)
    target = folder / f"{name}.{kind}"
    if target.exists():
        raise ArgumentError(f"expected {name} once, got it in two files")
    (folder / name).rename(target)


def _unpack_npz(packed: Path, name: str, budget: ByteBudget) -> None:
    """Unpack the known arrays of an .npz into its folder, and remove it.

    Raises ArgumentError for an archive without a known array and for an array given twice.
    """
    with open_archive(packed, name) as archive:
        entries = {entry.filename: entry for entry in files_in(archive, name)}
        known = [array for array in ARRAYS if f"{array}.npy" in entries]
        if not known:
            raise ArgumentError(
                f"{name}: expected arrays named {' or '.join(ARRAYS)} inside, "
                f"got {sorted(entries)[:5]}"
            )
        for array in known:
            target = packed.parent / f"{array}.npy"
            if target.exists():
                raise ArgumentError(f"expected {array} once, got it in two files")
            extract(archive, entries[f"{array}.npy"], target, budget)
    packed.unlink()


def _arrays(folder: Path) -> dict[str, ArrayFile]:
    """Open an unpacked folder's arrays by name; raises ArgumentError for one in two files."""
    found: dict[str, ArrayFile] = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        inside = {name: open_npy(path, name)} if path.exists() else {}
        container = folder / f"{name}.safetensors"
        if container.exists():
            inside |= open_safetensors(container, ARRAYS)
        for array, file in inside.items():
            if array in found:
                raise ArgumentError(f"expected {array} once, got it in two files")
            found[array] = file
    return found
