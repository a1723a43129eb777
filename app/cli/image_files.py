"""Image files of a command line: files, folders, globs, and objects of buckets."""

from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from app.errors import ArgumentError
from app.schemas.service import IMAGE_ENDINGS

if TYPE_CHECKING:
    from app.storage.object_files import ObjectFile, ObjectFolder


class Folders(NamedTuple):
    """Folders, or prefixes of buckets, of images and of label maps of the same stems."""

    images: "Path | ObjectFolder"
    labels: "Path | ObjectFolder"


def find_images(arguments: Iterable[str]) -> "list[Path | ObjectFile]":
    """List the named files, the images in the named folders and those that globs match, each once.

    Folders are read without those below them; `**` in a glob includes them. A URL names an object
    with an image's ending, or a prefix, which is read as a folder. Raises ArgumentError for an
    argument without an image.
    """
    found: dict[Path | ObjectFile, Path | ObjectFile] = {}
    for argument in arguments:
        folder = locate(argument)
        matches: list[Path | ObjectFile] = (
            [*matching(argument)] if isinstance(folder, Path) else [*objects(folder)]
        )
        if not matches:
            raise ArgumentError(f"expected an image, a folder with some or a glob, got {argument}")
        for path in matches:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def objects(prefix: "ObjectFolder") -> "Iterator[ObjectFile]":
    """Yield the object of a URL with an image's ending, or the images directly below a prefix.

    Raises ArgumentError for a glob.
    """
    if set("*?[") & set(prefix.url):
        raise ArgumentError(f"expected an object or a prefix of a bucket, got the glob {prefix}")
    named = locate_image(prefix.url)
    if is_image(named.name) and not isinstance(named, Path):
        yield named
        return
    yield from (each for each in prefix.iterdir() if is_image(each.name))


def matching(argument: str) -> Iterator[Path]:
    """Yield the images of one argument; a file that is named itself may have any ending."""
    path = Path(argument)
    if path.is_file():
        yield path
        return
    candidates = path.iterdir() if path.is_dir() else map(Path, glob(argument, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    for each in sorted(candidates):
        if is_image(each.name) and each.is_file():
            yield each


def is_image(name: str) -> bool:
    """Return whether a name is visible and has an image's ending."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in IMAGE_ENDINGS


def open_folder(text: str, option: str) -> "Path | ObjectFolder":
    """Return the folder, or the prefix of a bucket, that an option names; raises ArgumentError."""
    folder = locate(text)
    if not folder.is_dir():
        raise ArgumentError(f"{option}: expected a folder or a bucket's prefix, got {text}")
    return folder


def open_folders(images: str, labels: str) -> Folders:
    """Return the folders of the options `--images` and `--labels`; raises ArgumentError."""
    return Folders(open_folder(images, "--images"), open_folder(labels, "--labels"))


def locate(text: str) -> "Path | ObjectFolder":
    """Return the path, or the prefix of a bucket, of a text; raises ArgumentError."""
    if "://" not in text:
        return Path(text)
    from app.storage.object_files import ObjectFolder

    return ObjectFolder.parse(text)


def locate_image(text: str) -> "Path | ObjectFile":
    """Return the path, or the object of a bucket, of a text; raises ArgumentError."""
    folder = locate(text)
    if isinstance(folder, Path):
        return folder
    from app.storage.object_files import ObjectFile

    return ObjectFile.parse(text)
