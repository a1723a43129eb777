"""Image files of a command line: files, folders and globs."""

from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path

from app.errors import ArgumentError
from app.schemas.service import IMAGE_ENDINGS


def find_images(arguments: Iterable[str]) -> list[Path]:
    """List the named files, the images in the named folders and those that globs match, each once.

    Folders are read without those below them; `**` in a glob includes them. Raises ArgumentError
    for an argument without an image.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        matches = list(matching(argument))
        if not matches:
            raise ArgumentError(f"expected an image, a folder with some or a glob, got {argument}")
        for path in matches:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def matching(argument: str) -> Iterator[Path]:
    """Yield the images of one argument; a file that is named itself may have any ending."""
    path = Path(argument)
    if path.is_file():
        yield path
        return
    candidates = path.iterdir() if path.is_dir() else map(Path, glob(argument, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    for each in sorted(candidates):
        visible = not each.name.startswith(".")
        if visible and each.suffix.lower() in IMAGE_ENDINGS and each.is_file():
            yield each
