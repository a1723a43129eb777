"""The table of `segcal segment` in a bucket: rows in parts, which are joined at the end."""

import csv
import io
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from app.cli.figures import FILE, Figures, FigureTable, WriteRow
from app.storage.object_files import ImageFile, ObjectFolder

PARTS = "figures"  # prefix of the parts
PART_ROWS, PART_S = 1000, 10.0


class ObjectTable(FigureTable):
    """The table in a bucket, whose objects cannot be appended to.

    Rows are put in parts, one for `PART_ROWS` rows or `PART_S` seconds; the rows of the last may be
    lost with the process. Parts are joined to one object, with one row for each image, when all
    rows are written.
    """

    def __init__(self, folder: ObjectFolder) -> None:
        self._object = folder / FILE
        self._parts = ObjectFolder(f"{folder}/{PARTS}")
        super().__init__(folder)

    @contextmanager
    def appending(self) -> Iterator[WriteRow]:
        """Collect rows in parts, and join these where no error is raised."""
        rows: list[tuple[object, ...]] = []
        began = 0.0  # of the part's first row

        def write(image: ImageFile, name: str, figures: Figures) -> None:
            nonlocal began
            began = began if rows else time.monotonic()
            rows.append((image, name, *asdict(figures).values()))
            if len(rows) == PART_ROWS or time.monotonic() - began > PART_S:
                self._put_part(rows)
                rows.clear()

        try:
            yield write
        finally:
            if rows:
                self._put_part(rows)
        self._join()

    def _put_part(self, rows: Iterable[Iterable[object]]) -> None:
        part = self._parts / f"{time.time_ns():020d}.csv"
        part.write_bytes(self._encoded(rows))

    def _join(self) -> None:
        """Put all rows as one object, the last row of each image, and delete the parts."""
        parts = list(self._parts.iterdir())
        rows = {row["image"]: row.values() for row in self._rows()}
        self._object.write_bytes(self._encoded(rows.values()))
        for part in parts:
            part.unlink()

    def _encoded(self, rows: Iterable[Iterable[object]]) -> bytes:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(self.columns)
        writer.writerows(rows)
        return buffer.getvalue().encode()

    def _texts(self) -> Iterator[str]:
        with suppress(FileNotFoundError):
            yield self._object.read_bytes().decode()
        for part in self._parts.iterdir():
            yield part.read_bytes().decode()
