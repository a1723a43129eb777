"""`segcal evaluate --ray` and `segcal calibrate --ray`: parts of a labelled set on Ray actors."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from app.cli.evaluation import local_model
from app.cli.fits import Progress, Source
from app.cli.shards import fit_shards, images_to_fit
from app.cluster.actors import cluster, map_on_actors
from app.datasets.images import Pair
from app.datasets.shards import LabelledSet, ShardNumber, write_shard
from app.evaluation.evaluate import (
    Comparison,
    EvaluatedModel,
    Measured,
    Options,
    compare,
    measure,
)
from app.inference.model_card import ModelFolder
from app.inference.predictor import open_predictor
from app.recalibration import PublishedCalibrator
from app.schemas.fit import FitOptions
from app.settings import Settings

IMAGES_OF_A_PART = 16


@contextmanager
def worker_settings(address: str, settings: Settings) -> Iterator[Settings]:
    """Connect to a Ray cluster and yield the settings of its actors: one thread, absolute paths."""
    artifacts = settings.artifacts_dir
    update = {
        "threads": 1,
        "models_dir": settings.models_dir.resolve(),
        "artifacts_dir": artifacts.resolve() if isinstance(artifacts, Path) else artifacts,
        "state_dir": settings.state_dir.resolve(),
    }
    with cluster(address, settings.threads):
        yield settings.model_copy(update=update)


def evaluate_on_ray(
    address: str, model: EvaluatedModel, settings: Settings, pairs: Sequence[Pair], options: Options
) -> Comparison:
    """Evaluate a local model as `evaluate_model`, on parts of the set in the actors of a cluster.

    Each part returns its `Measured`; these are merged in the order of the set.
    """
    version = "none" if model.manifest is None else model.manifest.id
    name = model.folder.card.name
    absolute = [pair.resolve() for pair in pairs]
    starts = range(0, len(pairs), IMAGES_OF_A_PART)
    parts = [absolute[start : start + IMAGES_OF_A_PART] for start in starts]
    measured, done = Measured.of(model), dict[int, Measured]()
    with worker_settings(address, settings) as used:
        build = partial(build_measurement, used, name, version, options)
        for index, part in map_on_actors(build, parts):
            done[index] = part
    for index in range(len(parts)):
        measured.merge(done[index])
    return compare(model, pairs, options, measured)


def build_measurement(
    settings: Settings, name: str, version: str, options: Options
) -> Callable[[list[Pair]], Measured]:
    """Load a model and its calibrator; return a function that measures a part of a set."""
    model = local_model(settings, name, version, options.tta)
    return lambda pairs: measure(model, pairs, options, lambda: None)


def calibrate_on_ray(
    address: str,
    source: Source,
    options: FitOptions,
    folder: ModelFolder,
    settings: Settings,
    out: Path,
    progress: Progress,
) -> PublishedCalibrator:
    """Compute the shards of a set in the actors of a cluster, then fit on them in this process."""
    given = images_to_fit(source, options, folder, settings, "--ray")
    pairs = [pair.resolve() for pair in given.pairs]
    data = LabelledSet(pairs, given.groups, given.ignore_index, given.max_pixels)
    total = math.ceil(len(pairs) / IMAGES_OF_A_PART)
    numbers = [ShardNumber(number, total) for number in range(1, total + 1)]
    with worker_settings(address, settings) as used:
        build = partial(build_shard_writer, used, folder, data, options, out.resolve())
        shards = [shard for _, shard in map_on_actors(build, numbers)]
    return fit_shards(shards, settings, progress)


def build_shard_writer(
    settings: Settings, folder: ModelFolder, data: LabelledSet, options: FitOptions, out: Path
) -> Callable[[ShardNumber], Path]:
    """Load a model; return a function that computes one shard into a folder of `out`."""
    predictor = open_predictor(folder, settings.device, settings.threads)
    return lambda shard: write_shard(shard, data, predictor, options, out, lambda *_: None)
