"""A folder of uploaded validation data becomes a validation set.

What comes in, under our own names: `logits`, `labels`, `image_index`, `drive_index` (.npy, .npz or
.safetensors), or `images`, `labels` (zip archives) and `drive_index` (.npy). `unpack` turns that,
once, into what fits read:

    <name>.npy | <name>.safetensors                       arrays
    pictures/<n>.png maps/<n>.png picture_names.json      pictures; <n> stands for a client's stem
"""

from collections.abc import Callable
from pathlib import Path

from app.archives import Room, extract, files_in, open_archive
from app.arrays import ArrayFile, kind_of, open_npy, open_safetensors
from app.calibration.validation import ValidationSet
from app.disk import storage
from app.errors import ArgumentError
from app.inference.predictor import Predictor
from app.labelled import SpooledLogits, find_pairs
from app.logit_checks import Contents
from app.logit_files import open_logits
from app.picture_uploads import (
    DRIVES,
    MAPS,
    PICTURES,
    Limits,
    check_pictures,
    picture_drives,
    unpack_pictures,
    with_names,
)

ARRAYS = ("logits", "labels", "image_index", DRIVES)
FIELDS = (*ARRAYS, "images")


def has_pictures(folder: Path) -> bool:
    """Tell whether an unpacked folder holds pictures, not arrays."""
    return (folder / PICTURES).is_dir()


def unpack(folder: Path, limits: Limits) -> None:
    """Unpack what came into the same folder, within limits; what was packed is removed.

    Raises UndecodableError, ArgumentError, TooLargeError and StorageError.
    """
    with storage("what was unpacked"):
        if (folder / "images").exists():
            unpack_pictures(folder, limits)
            if (folder / DRIVES).exists():
                _unpack_array(folder, DRIVES)
        else:
            _unpack_arrays(folder, Room(limits.unpacked_bytes))


def check(folder: Path, num_classes: int, ignore_index: int, limits: Limits) -> Contents:
    """Check an unpacked folder, labels and logits included, in one pass over it.

    Pictures are only checked by their headers. Raises ArgumentError, TooLargeError and
    UndecodableError.
    """
    if has_pictures(folder):
        return with_names(folder, lambda: check_pictures(folder, num_classes, ignore_index, limits))
    return open_logits(_arrays(folder), num_classes, ignore_index).check()


def open_upload(
    folder: Path,
    num_classes: int,
    ignore_index: int,
    max_pixels: int,
    predictor: Callable[[], Predictor],
    progress: Callable[[str, float], None],
    *,
    weather: bool = False,
) -> ValidationSet:
    """Open an unpacked folder; only pictures need the predictor, which runs over them here.

    Only they can be shown under other `weather` (see `labelled.SpooledLogits`).
    """
    if not has_pictures(folder):
        return open_logits(_arrays(folder), num_classes, ignore_index)
    pairs = find_pairs(folder / PICTURES, folder / MAPS)
    drives = picture_drives(folder / f"{DRIVES}.npy", len(pairs))
    return with_names(
        folder,
        lambda: SpooledLogits(
            predictor(), pairs, ignore_index, max_pixels, progress, drives, weather=weather
        ),
    )


def _unpack_arrays(folder: Path, room: Room) -> None:
    for name in ARRAYS:
        packed = folder / name
        if not packed.exists():
            continue
        kind = kind_of(packed, name)
        if kind == "zip":
            _unpack_npz(packed, name, room)
        else:
            _unpack_array(folder, name)


def _unpack_array(folder: Path, name: str) -> None:
    """Give an array's file the name of its kind."""
    kind = kind_of(folder / name, name)
    target = folder / f"{name}.{kind}"
    if target.exists():
        raise ArgumentError(f"expected {name} once, got it in two files")
    (folder / name).rename(target)


def _unpack_npz(packed: Path, name: str, room: Room) -> None:
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
            extract(archive, entries[f"{array}.npy"], target, room)
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
