"""Atomic and synced writes, file locks, and StorageError for a full or failing disk."""

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


def is_full(error: OSError) -> bool:
    """Return whether an error means that a disk has no space left."""
    return error.errno in FULL


@contextmanager
def storage(what: str) -> Iterator[None]:
    """Raise OSError as StorageError; `what` names the stored object in the message."""
    try:
        yield
    except OSError as error:
        cause = "no space left" if is_full(error) else error.strerror or "an unknown failure"
        raise StorageError(f"expected to store {what}, got: {cause}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file and hold it; the system releases it when the process exits."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Try to hold the lock of a file, without waiting; yield whether it is held."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_synced(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write and sync a new file; `mode` holds its permission bits before the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file atomically; its content is synced before the rename."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_synced(temporary, data, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Replace a file atomically by a value as JSON."""
    replace_file(path, json.dumps(value).encode())
