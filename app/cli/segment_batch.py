"""`segcal segment --ray`: segment image files on Ray actors; a batch that died goes on."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.cli.figures import FILE, Figures, FigureTable, open_table, result_path
from app.cli.local_segmenter import LocalSegmenter
from app.cli.segment_files import Request, read_bytes
from app.cluster.actors import map_on_actors
from app.errors import ArgumentError, InputError
from app.serving.model_folders import find_model
from app.serving.segmenter import NO_CALIBRATOR, find_calibrator
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import replace_file, storage
from app.storage.object_files import ImageFile, ObjectFile, ObjectFolder

BATCH = "batch.json"  # the options of a folder's batch
PARQUET = "figures.parquet"
IMAGES_OF_A_TASK = 8  # computed again where their worker is killed
ARROW_TYPES = {str: "string", str | None: "string", int: "int64", float: "float64"}
ARROW_TYPES[float | None] = "float64"


class ImageTask(NamedTuple):
    """An image file and the name of its results."""

    image: ImageFile
    name: str


def segment_batch(
    images: Sequence[ImageFile], out: Path | ObjectFolder, settings: Settings, request: Request
) -> dict[ImageFile, str]:
    """Segment images on actors into a folder; return the errors of those that cannot be segmented.

    Images of an earlier run of the same batch are skipped. `active` is resolved once, so that the
    whole batch has one calibrator. Call within `cluster`. Raises ArgumentError for a folder with
    results of other options.
    """
    folder = find_model(settings, request.options.get("model"))
    stored = find_calibrator(
        ArtifactStore(settings.artifacts_dir), folder, request.options.get("calibrator", "active")
    )
    version = stored.manifest.id if stored else NO_CALIBRATOR
    request = replace(
        request, options={**request.options, "model": folder.card.name, "calibrator": version}
    )
    table = open_table(out.resolve())
    _require_same_batch(table, {**asdict(request), "model_sha256": folder.sha256})
    tasks = [
        ImageTask(path, table.name(path)) for path in images if path.resolve() not in table.earlier
    ]
    absolute = [task._replace(image=task.image.resolve()) for task in tasks]
    failed: dict[ImageFile, str] = {}
    build = partial(build_worker, settings, request, table.folder)
    with table.appending() as write:
        for index, result in map_on_actors(build, absolute, IMAGES_OF_A_TASK):
            if isinstance(result, str):
                failed[tasks[index].image] = result
            else:
                write(*tasks[index], result)
    write_parquet(table)
    return failed


def build_worker(
    settings: Settings, request: Request, out: Path | ObjectFolder
) -> Callable[[ImageTask], Figures | str]:
    """Load the model; return a function that writes an image's results.

    It returns the image's figures, or the reason for which it cannot be segmented.
    """
    segmenter = LocalSegmenter(settings, request)

    def segment(task: ImageTask) -> Figures | str:
        try:
            done = segmenter(read_bytes(task.image))
        except InputError as error:
            return str(error)
        with storage("the results of an image"):
            for kind, data in done.files.items():
                result_path(out, task.name, kind).write_bytes(data)
        return done.figures

    return segment


def write_parquet(table: FigureTable) -> None:
    """Write a table as Parquet too, with the same columns."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    types = {"image": pa.string(), "name": pa.string()} | {
        field.name: pa.type_for_alias(ARROW_TYPES[field.type])  # type: ignore[index]
        for field in fields(Figures)
    }
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
    rows = csv.read_csv(io.BytesIO((table.folder / FILE).read_bytes()), convert_options=convert)
    buffer = io.BytesIO()
    parquet.write_table(rows, buffer)
    replace_content(table.folder / PARQUET, buffer.getvalue(), "the table")


def replace_content(path: Path | ObjectFile, data: bytes, what: str) -> None:
    """Replace a file or an object atomically; `what` names it in a StorageError."""
    if isinstance(path, ObjectFile):
        path.write_bytes(data)
        return
    with storage(what):
        replace_file(path, data)


def _require_same_batch(table: FigureTable, options: dict[str, object]) -> None:
    """Record the options in the folder, or raise ArgumentError where its results have others."""
    path = table.folder / BATCH
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        if table.earlier:
            raise ArgumentError(
                f"--out: expected a new folder or one of --ray, got results without {BATCH} in "
                f"{table.folder}"
            ) from None
        replace_content(path, json.dumps(options).encode(), "the options of a batch")
        return
    if known != json.loads(json.dumps(options)):
        raise ArgumentError(
            f"--out: expected a new folder or the options of {path}, got others; "
            f"its calibrator was {known['options']['calibrator']}"
        )
