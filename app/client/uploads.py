"""Files of a calibration upload, sent without loading them."""

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

OnProgress = Callable[[str, float], None]  # called with a stage and its fraction done, in 0..1
Parts = dict[str, tuple[str, FileIO]]  # httpx's: file name and file by field


class ReportingFile(FileIO):
    """A file that reports the number of bytes of each read."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes."""
        data = super().read(size)
        self._on_read(len(data))
        return data


@contextmanager
def archives(paths: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Yield the files of an upload; folders are packed into temporary zip archives."""
    with tempfile.TemporaryDirectory(prefix="segcal-zip-") as name:
        yield {
            field: pack(path, Path(name) / f"{field}.zip") if path.is_dir() else path
            for field, path in paths.items()
        }


def pack(folder: Path, target: Path) -> Path:
    """Pack a folder's visible files into a zip archive, uncompressed, and return its path."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                archive.write(path, path.name)
    return target


@contextmanager
def opened(files: Mapping[str, Path], on_progress: OnProgress | None) -> Iterator[Parts]:
    """Open the files of a form by field, and report the fraction of their bytes that is read."""
    total, sent = sum(path.stat().st_size for path in files.values()), 0

    def on_read(size: int) -> None:
        nonlocal sent
        sent += size
        if on_progress is not None:
            on_progress("uploading", sent / max(total, 1))

    with ExitStack() as stack:
        yield {
            name: ("data", stack.enter_context(ReportingFile(path, on_read)))
            for name, path in files.items()
        }
