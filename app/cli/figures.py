"""The table of `segcal segment`: one row for each image, appended to those of earlier runs."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from app.errors import ArgumentError

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


class FigureTable:
    """The table in a folder of results, and the names of the results' files.

    A name is the image's stem; where another image has it, its folder's name is put before it, and
    then a number behind it. Raises ArgumentError for a table with other columns.
    """

    columns = ("image", "name", *(field.name for field in fields(Figures)))

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._names: dict[Path, str] = {}
        for row in self._rows():
            self._names[Path(row["image"]).resolve()] = row["name"]
        self.earlier = frozenset(self._names)  # resolved paths of the images of earlier runs
        self._taken = set(self._names.values())

    def name(self, image: Path) -> str:
        """Return the name of an image's results: that of an earlier run, or a new one."""
        key = image.resolve()
        if key not in self._names:
            chosen = next(name for name in candidates(key) if name not in self._taken)
            self._names[key] = chosen
            self._taken.add(chosen)
        return self._names[key]

    def path(self, name: str, kind: str) -> Path:
        """Return the path of one of an image's results."""
        return result_path(self.folder, name, kind)

    @contextmanager
    def appending(self) -> Iterator[Callable[[Path, str, Figures], None]]:
        """Open the table to append rows; a new one gets a header."""
        with (self.folder / FILE).open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(self.columns)

            def write(image: Path, name: str, figures: Figures) -> None:
                writer.writerow((image, name, *asdict(figures).values()))
                file.flush()  # a run that is interrupted leaves the rows of its images

            yield write

    def _rows(self) -> list[dict[str, str]]:
        try:
            text = (self.folder / FILE).read_text("utf-8")
        except FileNotFoundError:
            return []
        reader = csv.DictReader(text.splitlines())
        if text and tuple(reader.fieldnames or ()) != self.columns:
            raise ArgumentError(
                f"--out: expected a folder whose {FILE} has the columns {','.join(self.columns)}, "
                f"got {','.join(reader.fieldnames or ())[:200]!r} in {self.folder}"
            )
        return list(reader)


def result_path(folder: Path, name: str, kind: str) -> Path:
    """Return the path of one of an image's results in a folder."""
    return folder / f"{name}.{kind}.png"


def candidates(image: Path) -> Iterator[str]:
    """Yield names for an image's results, the shortest first."""
    yield image.stem
    yield f"{image.parent.name}-{image.stem}"
    number = 2
    while True:
        yield f"{image.parent.name}-{image.stem}-{number}"
        number += 1
