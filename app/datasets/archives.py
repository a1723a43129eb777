"""Read untrusted zip archives; files are written under the service's own names only."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import ArgumentError, TooLargeError, UndecodableError

# zipfile loads the whole directory, at about 500 bytes of memory for an entry of 50.
MAX_DIRECTORY = 8 << 20
CHUNK = 1 << 20
ENCRYPTED = 0x1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may need gigabytes of memory
END, END_SIZE, COMMENT_SIZE = b"PK\x05\x06", 22, 65535
END64_LOCATOR, END64_LOCATOR_SIZE = b"PK\x06\x07", 20
BEYOND_32_BITS = 0xFFFFFFFF


@dataclass
class ByteBudget:
    """Limit on the bytes unpacked from one upload."""

    limit: int
    used: int = 0

    def consume(self, count: int) -> None:
        """Add unpacked bytes; raises TooLargeError above the limit."""
        self.used += count
        if self.used > self.limit:
            raise TooLargeError(
                f"expected at most {self.limit} bytes once unpacked, got {self.used} or more"
            )


@contextmanager
def open_archive(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; raises UndecodableError for damage found on opening or in the block."""
    try:
        _check_directory(path, name)
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UndecodableError(f"{name}: expected a whole zip archive, got: {error}") from error


def files_in(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """List an archive's files.

    Raises ArgumentError for links, UndecodableError for encryption and uncommon compression.
    """
    found = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in found:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ArgumentError(f"{name}: expected files, got the link {entry.filename[:80]!r}")
        if entry.flag_bits & ENCRYPTED:
            raise UndecodableError(f"{name}: expected unencrypted files, got encrypted ones")
        if entry.compress_type not in METHODS:
            raise UndecodableError(
                f"{name}: expected stored or deflated files, got method {entry.compress_type}"
            )
    return found


def extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, budget: ByteBudget
) -> None:
    """Unpack one file in chunks, counting the actual bytes instead of the declared size."""
    with archive.open(entry) as source, target.open("xb") as file:
        while piece := source.read(CHUNK):
            budget.consume(len(piece))
            file.write(piece)


def _check_directory(path: Path, name: str) -> None:
    """Raise TooLargeError for a directory above 8 MiB, before zipfile loads it."""
    with path.open("rb") as file:
        size = _directory_size(file, path.stat().st_size)
    if size > MAX_DIRECTORY:
        raise TooLargeError(
            f"{name}: expected a zip directory of at most {MAX_DIRECTORY} bytes, got {size}"
        )


def _directory_size(file: BinaryIO, length: int) -> int:
    """Read the directory's size in bytes from the end record, in its 64-bit form if present."""
    start = max(0, length - END_SIZE - COMMENT_SIZE - END64_LOCATOR_SIZE)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        raise zipfile.BadZipFile("no end of a central directory")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    locator = tail[max(0, at - END64_LOCATOR_SIZE) : at]
    if not locator.startswith(END64_LOCATOR):
        return size
    file.seek(min(int.from_bytes(locator[8:16], "little"), length))
    size64 = int.from_bytes(file.read(48)[40:48], "little")
    return max(size64, size if size != BEYOND_32_BITS else 0)
