"""Uploaded archives of images and label maps, unpacked under numbers of our own.

image_files/<n>.png label_files/<n>.png image_names.json      <n> stands for a client's stem

A folder of uploaded validation data becomes a validation set.

What comes in, under our own names: `logits`, `labels`, `image_index`, `group_index` (.npy, .npz or
.safetensors), or `images`, `labels` (zip archives) and `group_index` (.npy). `unpack` turns that,
once, into what fits read:

    <name>.npy | <name>.safetensors                       arrays
    image_files/<n>.png label_files/<n>.png image_names.json      images; <n> stands for a stem
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar
from zipfile import ZipFile, ZipInfo

from PIL import Image

from app.calibration.dataset import Augmentation, ValidationSet
from app.datasets.archives import ByteBudget, extract, files_in, open_archive
from app.datasets.arrays import ArrayFile, kind_of, open_npy, open_safetensors
from app.datasets.images import ENDINGS, CachedLogits, checked, find_pairs, read_labels
from app.datasets.logits import Contents, open_logits, require_images
from app.errors import ArgumentError, InputError, TooLargeError, UndecodableError
from app.imaging.decode import FORMATS, check_size
from app.inference.predictor import Predictor
from app.storage.files import storage

T = TypeVar("T")

IMAGE_FILES, LABEL_FILES, NAMES = "image_files", "label_files", "image_names.json"
GROUP_INDEX = "group_index"
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap the sides


@dataclass(frozen=True)
class Limits:
    """What an upload may hold: bytes once unpacked, and bytes and pixels of one image."""

    unpacked_bytes: int
    image_bytes: int
    image_pixels: int


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


def unpack_images(folder: Path, limits: Limits) -> None:
    """Unpack two archives into numbered files; the same number goes to the same stem."""
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
    """Find an archive's images by stem, whatever folder they are in."""
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
    """Tell images from what systems add to archives."""
    path = PurePosixPath(filename)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return not hidden and path.suffix.lower() in ENDINGS


def _common_stems(images: Mapping[str, ZipInfo], maps: Mapping[str, ZipInfo]) -> list[str]:
    unmatched = sorted(set(images) ^ set(maps))
    if unmatched or len(maps) < 2:
        raise ArgumentError(
            f"expected a label map for each of at least 2 images, by file stem, got "
            f"{len(images)} images, {len(maps)} label maps, and {len(unmatched)} without a "
            f"partner, such as {[stem[:80] for stem in unmatched[:3]]}"
        )
    return sorted(images)


def _check_bytes(size: int, name: str, limits: Limits) -> None:
    if size > limits.image_bytes:
        raise TooLargeError(f"{name}: expected at most {limits.image_bytes} bytes, got {size}")


def check_images(folder: Path, num_classes: int, ignore_index: int, limits: Limits) -> Contents:
    """Read all label maps, and the headers of the images."""
    images = pixels = 0
    pairs = find_pairs(folder / IMAGE_FILES, folder / LABEL_FILES)
    image_groups(folder / f"{GROUP_INDEX}.npy", len(pairs))
    for pair in pairs:
        _check_bytes(pair.image.stat().st_size, pair.image.name, limits)
        size = _upright_size(pair.image, limits)
        raw = read_labels(pair.labels, limits.image_pixels)
        if raw.shape != size:
            raise ArgumentError(
                f"{pair.labels.name}: expected labels of {size} (height, width), got {raw.shape}"
            )
        labelled = int((checked(raw, num_classes, ignore_index, pair.labels.name) >= 0).sum())
        images += labelled > 0
        pixels += labelled
    require_images(images)
    return Contents(images, pixels, maps=True)


def _upright_size(path: Path, limits: Limits) -> tuple[int, int]:
    """Read an image's height and width as decoded, without decoding it."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.size, limits.image_pixels)
            width, height = image.size
            sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders answer hostile bytes with many kinds
        raise UndecodableError(f"{path.name}: expected an image, got: {error}") from error
    return (width, height) if sideways else (height, width)


def with_names(folder: Path, work: Callable[[], T]) -> T:
    """Do work on numbered images; a refusal that begins with a number names the file instead."""
    try:
        return work()
    except InputError as error:
        number, _, rest = str(error).partition(".")
        if not number.isdecimal():
            raise
        names = json.loads((folder / NAMES).read_text("utf-8"))
        raise type(error)(f"{names[int(number)][:80]}.{rest}") from error


ARRAYS = ("logits", "labels", "image_index", GROUP_INDEX)
FIELDS = (*ARRAYS, "images")


def has_images(folder: Path) -> bool:
    """Tell whether an unpacked folder holds images, not arrays."""
    return (folder / IMAGE_FILES).is_dir()


def unpack(folder: Path, limits: Limits) -> None:
    """Unpack what came into the same folder, within limits; what was packed is removed.

    Raises UndecodableError, ArgumentError, TooLargeError and StorageError.
    """
    with storage("what was unpacked"):
        if (folder / "images").exists():
            unpack_images(folder, limits)
            if (folder / GROUP_INDEX).exists():
                _unpack_array(folder, GROUP_INDEX)
        else:
            _unpack_arrays(folder, ByteBudget(limits.unpacked_bytes))


def check(folder: Path, num_classes: int, ignore_index: int, limits: Limits) -> Contents:
    """Check an unpacked folder, labels and logits included, in one pass over it.

    Images are only checked by their headers. Raises ArgumentError, TooLargeError and
    UndecodableError.
    """
    if has_images(folder):
        return with_names(folder, lambda: check_images(folder, num_classes, ignore_index, limits))
    return open_logits(_arrays(folder), num_classes, ignore_index).check()


def open_upload(
    folder: Path,
    num_classes: int,
    ignore_index: int,
    max_pixels: int,
    predictor: Callable[[], Predictor],
    progress: Callable[[str, float], None],
    *,
    augmentation: Augmentation = "none",
) -> ValidationSet:
    """Open an unpacked folder; only images need the predictor, which runs over them here.

    Only images can be augmented (see `images.CachedLogits`).
    """
    if not has_images(folder):
        return open_logits(_arrays(folder), num_classes, ignore_index)
    pairs = find_pairs(folder / IMAGE_FILES, folder / LABEL_FILES)
    groups = image_groups(folder / f"{GROUP_INDEX}.npy", len(pairs))
    return with_names(
        folder,
        lambda: CachedLogits(
            predictor(),
            pairs,
            ignore_index,
            max_pixels,
            progress,
            groups,
            augmentation=augmentation,
        ),
    )


def _unpack_arrays(folder: Path, budget: ByteBudget) -> None:
    for name in ARRAYS:
        packed = folder / name
        if not packed.exists():
            continue
        kind = kind_of(packed, name)
        if kind == "zip":
            _unpack_npz(packed, name, budget)
        else:
            _unpack_array(folder, name)


def _unpack_array(folder: Path, name: str) -> None:
    """Give an array's file the name of its kind."""
    kind = kind_of(folder / name, name)
    target = folder / f"{name}.{kind}"
    if target.exists():
        raise ArgumentError(f"expected {name} once, got it in two files")
    (folder / name).rename(target)


def _unpack_npz(packed: Path, name: str, budget: ByteBudget) -> None:
    """Unpack the arrays that a fit needs from an .npz, next to it, and remove it."""
    with open_archive(packed, name) as archive:
        entries = {entry.filename: entry for entry in files_in(archive, name)}
        wanted = [array for array in ARRAYS if f"{array}.npy" in entries]
        if not wanted:
            raise ArgumentError(
                f"{name}: expected arrays named {' or '.join(ARRAYS)} inside, "
                f"got {sorted(entries)[:5]}"
            )
        for array in wanted:
            target = packed.parent / f"{array}.npy"
            if target.exists():
                raise ArgumentError(f"expected {array} once, got it in two files")
            extract(archive, entries[f"{array}.npy"], target, budget)
    packed.unlink()


def _arrays(folder: Path) -> dict[str, ArrayFile]:
    """Find the arrays of an unpacked folder by name."""
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
