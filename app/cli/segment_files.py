"""Segment image files, several at once, and write their results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from app.cli.figures import Figures, FigureTable
from app.errors import InputError

if TYPE_CHECKING:
    from app.client import SegmentArguments
    from app.storage.object_files import ImageFile

F = TypeVar("F", bound="ImageFile")


@dataclass(frozen=True)
class Request:
    """Options of all images, and the files to write besides mask and confidence."""

    options: "SegmentArguments"
    overlay: bool = False
    heatmap: bool = False


class Segmented(NamedTuple):
    """One image's files, as PNG by kind, and its figures."""

    files: Mapping[str, bytes]
    figures: Figures


class FileSegmenter(Protocol):
    """Segments encoded images, `workers` at once; raises SegcalError."""

    workers: int

    def __call__(self, image: bytes) -> Segmented:
        """Segment one image."""


def segment_all(
    images: Sequence[F],
    table: FigureTable,
    segmenter: FileSegmenter,
    advance: Callable[[], object],
) -> dict[F, str]:
    """Write the files and rows of images; return the errors of those that cannot be segmented.

    Raises the SegcalError of another fault, which the other images would have as well.
    """
    names = {path: table.name(path) for path in images}

    def segment_file(path: F) -> Figures:
        done = segmenter(read_bytes(path))
        for kind, data in done.files.items():
            table.path(names[path], kind).write_bytes(data)
        return done.figures

    failed: dict[F, str] = {}
    with table.appending() as write:
        for path, future in completed(segment_file, images, segmenter.workers):
            try:
                write(path, names[path], future.result())
            except InputError as error:
                failed[path] = str(error)
            advance()
    return failed


def completed(
    work: Callable[[F], Figures], images: Iterable[F], workers: int
) -> Iterator[tuple[F, Future[Figures]]]:
    """Run work on images in threads; yield each with its future in order, few of them pending."""
    with ThreadPoolExecutor(workers, "images") as pool:
        pending: deque[tuple[F, Future[Figures]]] = deque()
        try:
            for image in images:
                pending.append((image, pool.submit(work, image)))
                if len(pending) > 2 * workers:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                future.cancel()


def read_bytes(path: "ImageFile") -> bytes:
    """Read a file; raises InputError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"expected a file that can be read, got: {error.strerror}") from error
