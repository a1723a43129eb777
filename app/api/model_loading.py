"""Load the models at the start, again on request, and remote ones once their server is up."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from app.api.dependencies import State
from app.errors import ModelError
from app.inference.model_card import ModelFolder, read_card
from app.inference.predictor import Predictor, open_predictor
from app.inference.threads import RowWorkers
from app.serving.memory import MemoryBudget
from app.serving.model_folders import max_concurrent_requests, model_folders
from app.serving.reload import LoadReport, load_folders
from app.serving.segmenter import Segmenter
from app.settings import Settings

log = logging.getLogger(__name__)

RELOAD_ATTEMPTS = 3  # to measure memory, of which the smallest counts: requests run meanwhile
RETRY_S = 5.0  # between two attempts to load a remote model


def start_models(state: State) -> None:
    """Load the models at the start; a failure is the reason for which the service is not ready."""
    try:
        load_models(state)
    except Exception as error:
        log.exception("loading models failed")
        state.readiness.reason = f"loading models failed ({type(error).__name__}), see the log"


def load_models(state: State) -> LoadReport:
    """Load and warm up new and changed models, then serve them; at the start these are all.

    Running requests keep the models that they began with. One call runs at a time.
    """
    with state.readiness.loading:
        served = state.readiness.segmenter
        predictors, report = open_models(state, {} if served is None else served.predictors)
        state.readiness.refused = dict(report.refused)
        if not predictors:
            state.readiness.reason = f"no model can be served: {report.refused}"
            log.error(state.readiness.reason)
            return report
        segmenter = Segmenter(
            predictors,
            state.settings.default_model,
            state.artifacts,
            state.settings.max_pixels,
            RowWorkers(state.settings.threads, state.admission.active_requests),
            state.drift,
            state.decoders,
            measure_memory(state.settings, predictors, report, served),
        )
        try:
            segmenter.warm_up()
        except Exception:  # a request that fails in the same way reports it
            log.exception("warming up failed")
        state.readiness.segmenter = segmenter
        return report


def measure_memory(
    settings: Settings,
    predictors: dict[str, Predictor],
    report: LoadReport,
    served: Segmenter | None,
) -> MemoryBudget:
    """Measure the models that were loaded; results and uploads have a part of the budget."""
    own = settings.result_bytes + settings.upload_buffer_bytes
    known = {} if served is None or served.memory is None else served.memory.per_pixel
    budget = MemoryBudget.measured(
        {name: predictors[name] for name in report.loaded},
        settings.memory_bytes - own,
        max_concurrent_requests(settings),
        attempts=1 if served is None else RELOAD_ATTEMPTS,
    )
    kept = {name: each for name, each in known.items() if name in predictors}
    return replace(budget, per_pixel={**kept, **budget.per_pixel})


def open_models(
    state: State, current: Mapping[str, Predictor]
) -> tuple[dict[str, Predictor], LoadReport]:
    """Load the model folders that `current` does not hold; return predictors and the report."""
    settings = state.settings

    def open_folder(folder: ModelFolder) -> Predictor:
        predictor = open_predictor(
            folder, settings.device, settings.threads, state.admission.active_requests
        )
        for warning in predictor.warnings:
            log.warning("model %s: %s", folder.card.name, warning)
        return predictor

    paths = model_folders(settings.models_dir)
    predictors, report = load_folders(paths, current, open_folder, settings.default_model)
    for name, reason in report.refused.items():
        log.warning("refused model %s: %s", name, reason)
        # Clients read it in /models, so that paths are given below the folder of models.
        report.refused[name] = reason.replace(f"{settings.models_dir}/", "")
    # Threads of concurrent torch calls wait for each other by spinning; ONNX Runtime has its own.
    in_torch = any(p.folder.path.suffix in (".pt", ".pt2") for p in predictors.values())
    torch.set_num_threads(settings.threads if in_torch else 1)
    return predictors, report


async def retry_remote_models(state: State, loading: asyncio.Task[None]) -> None:
    """Load the models again while the inference server of a remote one does not serve it."""
    await loading
    while await asyncio.to_thread(remote_is_refused, state):
        await asyncio.sleep(RETRY_S)
        await asyncio.to_thread(load_models, state)


def remote_is_refused(state: State) -> bool:
    """Return whether a refused model is a remote one, whose server may start later."""
    for name in state.readiness.refused:
        try:
            if read_card(state.settings.models_dir / name).remote is not None:
                return True
        except ModelError:
            continue
    return False
