"""The table of `segcal segment`: one row for each image, appended to those of earlier runs."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.image_files import locate_image
from app.errors import ArgumentError

if TYPE_CHECKING:
    from app.storage.object_files import ImageFile, ObjectFile, ObjectFolder

FILE = "figures.csv"


@dataclass(frozen=True)
class Figures:
    """Figures of one image; sizes in pixels, confidence, fractions and scores in 0..1.

    `threshold` is that of abstention, `in_distribution` the calibrator's score and `guarantee`
    that of `max_error`; None where there is none.
    """

    model: str
    calibrator: str
    width: int
    height: int
    mean_confidence: float
    abstained_fraction: float
    threshold: float | None
    in_distribution: float | None
    guarantee: str | None


WriteRow = Callable[["ImageFile", str, Figures], None]


class FigureTable(ABC):
    """The table beside results, and the names of the results' files.

    A name is the image's stem; where another image has it, its folder's name is put before it, and
    then a number behind it. Raises ArgumentError for a table with other columns.
    """

    columns = ("image", "name", *(field.name for field in fields(Figures)))

    def __init__(self, folder: "Path | ObjectFolder") -> None:
        self.folder = folder
        self._names: dict[ImageFile, str] = {}
        for row in self._rows():
            self._names[locate_image(row["image"]).resolve()] = row["name"]
        self.earlier = frozenset(self._names)  # absolute paths of the images of earlier runs
        self._taken = set(self._names.values())

    def name(self, image: "ImageFile") -> str:
        """Return the name of an image's results: that of an earlier run, or a new one."""
        key = image.resolve()
        if key not in self._names:
            chosen = next(name for name in candidates(key) if name not in self._taken)
            self._names[key] = chosen
            self._taken.add(chosen)
        return self._names[key]

    def path(self, name: str, kind: str) -> "Path | ObjectFile":
        """Return the path of one of an image's results."""
        return result_path(self.folder, name, kind)

    @abstractmethod
    def appending(self) -> AbstractContextManager[WriteRow]:
        """Open the table to append rows; a new one gets a header."""

    @abstractmethod
    def _texts(self) -> Iterator[str]:
        """Yield the table, which may be in parts, as CSV with a header."""

    def _rows(self) -> Iterator[dict[str, str]]:
        for text in self._texts():
            reader = csv.DictReader(text.splitlines())
            if text and tuple(reader.fieldnames or ()) != self.columns:
                raise ArgumentError(
                    f"--out: expected a folder whose {FILE} has the columns "
                    f"{','.join(self.columns)}, got {','.join(reader.fieldnames or ())[:200]!r} in "
                    f"{self.folder}"
                )
            yield from reader


class FileTable(FigureTable):
    """The table in a folder: one file, to which each row is appended."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / FILE
        super().__init__(folder)

    @contextmanager
    def appending(self) -> Iterator[WriteRow]:
        """Open the file to append rows; a new one gets a header."""
        with self._file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(self.columns)

            def write(image: "ImageFile", name: str, figures: Figures) -> None:
                writer.writerow((image, name, *asdict(figures).values()))
                file.flush()  # a run that is interrupted leaves the rows of its images

            yield write

    def _texts(self) -> Iterator[str]:
        if self._file.exists():
            yield self._file.read_text("utf-8")


def open_table(folder: "Path | ObjectFolder") -> FigureTable:
    """Open the table of a folder or of a bucket's prefix."""
    if isinstance(folder, Path):
        return FileTable(folder)
    from app.cli.object_figures import ObjectTable

    return ObjectTable(folder)


def result_path(folder: "Path | ObjectFolder", name: str, kind: str) -> "Path | ObjectFile":
    """Return the path of one of an image's results in a folder."""
    return folder / f"{name}.{kind}.png"


def candidates(image: "ImageFile") -> Iterator[str]:
    """Yield names for an image's results, the shortest first."""
    yield image.stem
    yield f"{image.parent.name}-{image.stem}"
    number = 2
    while True:
        yield f"{image.parent.name}-{image.stem}-{number}"
        number += 1
