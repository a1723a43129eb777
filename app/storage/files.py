"""Writing to a disk that may be full: whole files or none, and one error for what goes wrong."""

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def storage(what: str) -> Iterator[None]:
    """Turn a full or failing disk into StorageError; `what` is what was to be stored."""
    try:
        yield
    except OSError as error:
        came = "no space left" if error.errno in FULL else error.strerror or str(error)
        raise StorageError(f"expected to store {what}, got: {came}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for it; the lock goes with its process, however that ends."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_synced(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a new file whose content is on the disk when this returns.

    `mode` is what the umask takes its bits from, from the first instant on.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file in one atomic step; the content is on the disk before the name is."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_synced(temporary, data, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Replace a file of JSON, as `replace_file` does."""
    replace_file(path, json.dumps(value).encode())
