"""The fit of `segcal calibrate` in this process."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from app.calibration.dataset import ValidationSet
from app.cli.image_files import Folders
from app.datasets.images import find_pairs, read_labels
from app.datasets.shards import LabelledSet
from app.datasets.stored_logits import CachedLogits
from app.datasets.uploads import (
    GROUP_INDEX,
    Limits,
    check,
    image_groups,
    open_upload,
    unpack,
    void_label,
)
from app.datasets.void_labels import find_void_label
from app.errors import ArgumentError
from app.inference.model_card import ModelFolder
from app.inference.predictor import open_predictor
from app.recalibration import PublishedCalibrator, calibrate, candidates, require_inputs
from app.schemas.fit import FitOptions
from app.settings import Settings
from app.storage.artifacts import ArtifactStore

Progress = Callable[[str, float], None]  # called with a stage and its fraction done, in 0..1


class Source(NamedTuple):
    """Validation data: files by field of POST /calibrate, and folders of images if it has any.

    `ignore_index` is the label of void pixels, None for that of the card.
    """

    paths: Mapping[str, Path]
    ignore_index: int | None
    folders: Folders | None = None

    def uploads(self) -> dict[str, Path]:
        """Return all files and folders by field; raises ArgumentError for prefixes of buckets."""
        given = {} if self.folders is None else self.folders._asdict()
        folders = {name: each for name, each in given.items() if isinstance(each, Path)}
        if len(folders) < len(given):
            raise ArgumentError(
                f"expected folders with --url, got {', '.join(map(str, given.values()))}"
            )
        return {**self.paths, **folders}


def fit_locally(
    source: Source, options: FitOptions, folder: ModelFolder, settings: Settings, progress: Progress
) -> PublishedCalibrator:
    """Fit in this process, with the models and calibrators of the configured folders."""
    candidates(options)  # raises before files are read
    with validation_set(source, options.method, folder, settings, progress) as data:
        store = ArtifactStore(settings.artifacts_dir)
        return calibrate(folder, data, store, options, progress)


@contextmanager
def validation_set(
    source: Source,
    method: str,
    folder: ModelFolder,
    settings: Settings,
    progress: Progress,
) -> Iterator[ValidationSet]:
    """Yield the validation set of images and label maps, or of a file of logits."""
    if source.folders is not None:
        given = labelled_set(source, source.folders, folder, settings)
        predictor = open_predictor(folder, settings.device, settings.threads)
        yield CachedLogits(
            predictor, given.pairs, given.ignore_index, given.max_pixels, progress, given.groups
        )
        return
    void, of_card = source.ignore_index, folder.card.output.ignore_index
    limits = Limits(settings.max_calibration_bytes, settings.max_upload_bytes, settings.max_pixels)
    with tempfile.TemporaryDirectory(prefix="segcal-logits-") as name:
        scratch = Path(name)
        for field, path in source.paths.items():
            (scratch / field).symlink_to(path.resolve())
        unpack(scratch, limits)
        void = void_label(scratch, void, of_card, folder.num_classes, settings.max_pixels)
        contents = check(
            scratch,
            folder.num_classes,
            void,
            limits,
            reduce_zero=folder.card.output.reduce_zero_label,
        )
        require_inputs(method, maps=contents.maps)
        yield open_upload(
            scratch,
            folder.num_classes,
            void,
            settings.max_pixels,
            lambda: open_predictor(folder, settings.device, settings.threads),
            progress,
        )


def labelled_set(
    source: Source, folders: Folders, folder: ModelFolder, settings: Settings
) -> LabelledSet:
    """Find the images, label maps and groups of a source, and the label of void pixels."""
    pairs = find_pairs(*folders)
    void = source.ignore_index
    if void is None:
        label_maps = (read_labels(pair.labels, settings.max_pixels) for pair in pairs)
        void = find_void_label(label_maps, folder.card.output.ignore_index, folder.num_classes)
    groups = image_groups(source.paths.get(GROUP_INDEX), len(pairs))
    return LabelledSet(pairs, groups, void, settings.max_pixels)
