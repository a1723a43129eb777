"""A fit over shards: compute one, and run the fit on all of them."""

from collections.abc import Sequence
from pathlib import Path

from app.cli.fits import Progress, Source, labelled_set
from app.datasets.shards import LabelledSet, ShardNumber, open_shards, read_record, write_shard
from app.errors import ArgumentError
from app.inference.model_card import ModelFolder
from app.inference.predictor import open_predictor
from app.recalibration import PublishedCalibrator, calibrate, candidates
from app.schemas.fit import FitOptions
from app.serving.model_folders import find_model
from app.settings import Settings
from app.storage.artifacts import ArtifactStore


def compute_shard(
    shard: ShardNumber,
    source: Source,
    options: FitOptions,
    folder: ModelFolder,
    settings: Settings,
    out: Path,
    progress: Progress,
) -> Path:
    """Compute a shard of a source of images into a folder of `out`; see `write_shard`."""
    data = images_to_fit(source, options, folder, settings, "--shard")
    predictor = open_predictor(folder, settings.device, settings.threads)
    return write_shard(shard, data, predictor, options, out, progress)


def images_to_fit(
    source: Source, options: FitOptions, folder: ModelFolder, settings: Settings, flag: str
) -> LabelledSet:
    """Open the images of a fit in parts; raises ArgumentError for wrong options and for logits."""
    candidates(options)  # raises before images are read
    if source.folders is None:
        raise ArgumentError(f"expected --images with {flag}, got --logits, which need no model")
    return labelled_set(source, source.folders, folder, settings)


def fit_shards(
    shards: Sequence[Path], settings: Settings, progress: Progress
) -> PublishedCalibrator:
    """Fit on the set of all shards, with the model and the options that they record.

    Raises ArgumentError where the configured model has another hash, and as `open_shards`.
    """
    record = read_record(shards[0])
    folder = find_model(settings, record.model)
    if folder.sha256 != record.model_sha256:
        raise ArgumentError(
            f"expected the model {record.model} with the hash {record.model_sha256[:12]}, whose "
            f"logits the shards hold, got {folder.sha256[:12]}"
        )
    data = open_shards(shards, folder.num_classes)
    store = ArtifactStore(settings.artifacts_dir)
    return calibrate(folder, data, store, record.options, progress)
