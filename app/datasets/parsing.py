"""The boundary of all parsers of an upload: whatever they raise becomes an InputError."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import SegcalError, TooLargeError, UndecodableError
from app.storage.files import storage

log = logging.getLogger(__name__)

# Offsets and sizes of a damaged file reach the system, which rejects them with these numbers.
REJECTED_BY_SYSTEM = (None, errno.EINVAL, errno.EOVERFLOW, errno.ENXIO)


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Raise UndecodableError, or TooLargeError without memory, for any failure of a parser.

    Errors of this service pass; other errors of the system, such as a full disk, become
    StorageError. The failure is logged, since it may also be a defect of this service. `what`
    names the parsed object in messages.
    """
    try:
        with storage(what):
            try:
                yield
            except OSError as error:
                if error.errno not in REJECTED_BY_SYSTEM:
                    raise
                raise ValueError(f"expected valid offsets, got: {error.strerror}") from error
    except SegcalError:
        raise
    except MemoryError as error:
        raise TooLargeError(f"expected {what} that fits in memory, got a larger one") from error
    except Exception as error:
        log.info("%s was rejected by its parser", what, exc_info=error)
        raise UndecodableError(
            f"expected {what} whose files are whole, got one that can't be read "
            f"({type(error).__name__})"
        ) from error
