"""`/labelstudio`: the routes that Label Studio calls on a machine learning backend.

Each also exists below `/labelstudio/{model}`, for the URL of a backend with another model than the
default one.
"""

import time
from collections.abc import Callable
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from pydantic.json_schema import SkipJsonSchema

from app.api.dependencies import SegmenterDep, State, StateDep
from app.api.labelstudio.access import ClientCheck
from app.api.labelstudio.collector import Collector
from app.api.labelstudio.labelling_config import BrushControl, read_control
from app.api.labelstudio.regions import regions_of
from app.api.labelstudio.schemas import (
    BackendHealth,
    BackendVersion,
    BackendVersions,
    PredictRequest,
    PredictResponse,
    SetupRequest,
    TaskError,
    TaskPrediction,
    WebhookRequest,
    WebhookResponse,
)
from app.api.openapi import SEGMENTATION, answers
from app.deadline import Deadline
from app.errors import SegcalError, UnavailableError
from app.inference.predictor import Predictor
from app.serving.pipeline import StageTimer
from app.serving.segmenter import ACTIVE, Segmenter, SegmentOptions

router = APIRouter(tags=["label studio"], dependencies=[ClientCheck])

ModelName = str | SkipJsonSchema[None]  # never null in a path

UNCALIBRATED = "uncalibrated"
PREDICT_S = 90.0  # Label Studio waits 100 s, and keeps nothing of a response that comes later
ANNOTATED = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")


async def get_collector(request: Request) -> Collector:
    """Return the collector of annotations."""
    collector: Collector = request.app.state.labelstudio
    return collector


CollectorDep = Annotated[Collector, Depends(get_collector)]


def health(model: ModelName = None) -> BackendHealth:
    """Return that the backend is up."""
    del model  # of the path; any is up
    return BackendHealth()


def setup(body: SetupRequest, segmenter: SegmenterDep, model: ModelName = None) -> BackendVersion:
    """Check a project's labels against the model's classes; return the calibrator's id.

    A project without brush labels is accepted, as it may get them later.
    """
    predictor = segmenter.predictor(model)
    if "<BrushLabels" in body.label_config:
        read_control(body.label_config, class_names(predictor))
    return BackendVersion(model_version=version_of(segmenter, predictor))


def versions(segmenter: SegmenterDep, model: ModelName = None) -> BackendVersions:
    """Return the id of the active calibrator, with which tasks are predicted."""
    return BackendVersions(versions=[version_of(segmenter, segmenter.predictor(model))])


async def predict(
    body: PredictRequest,
    state: StateDep,
    segmenter: SegmenterDep,
    collector: CollectorDep,
    model: ModelName = None,
) -> PredictResponse:
    """Predict the images of tasks as brush regions, with the calibrator's id as model version.

    Pixels below `SEGCAL_LABELSTUDIO_MIN_CONFIDENCE` are in no region. The score of a task is its
    mean confidence: the least certain task has the lowest. Images are read of the hosts in
    `SEGCAL_LABELSTUDIO_HOSTS` and of `SEGCAL_LABELSTUDIO_URL`, one by one and for 90 s at most. A
    task that can't be predicted has an `error` in place of a result; where all have, the
    response is the first one's problem.
    """
    predictor = segmenter.predictor(model)
    control = read_control(body.label_config, class_names(predictor))
    started = time.monotonic()
    results: list[TaskPrediction | TaskError] = []
    first: SegcalError | None = None
    for task in body.tasks:
        try:
            if time.monotonic() - started > PREDICT_S:
                raise UnavailableError(
                    f"expected predictions within {PREDICT_S:g} s, got more tasks: ask again"
                )
            address = str(task.data.get(control.variable))
            async with collector.downloads:
                image = await anyio.to_thread.run_sync(collector.connection.read_image, address)
                results.append(await predict_image(image, control, state, segmenter, predictor))
        except SegcalError as error:
            first = first or error
            results.append(TaskError(error=str(error)))
    if first is not None and all(isinstance(result, TaskError) for result in results):
        raise first
    return PredictResponse(results=results)


async def predict_image(
    image: bytes, control: BrushControl, state: State, segmenter: Segmenter, predictor: Predictor
) -> TaskPrediction:
    """Segment one image of a task, as one request among all others."""
    options = SegmentOptions(
        predictor.folder.card.name, ACTIVE, state.settings.labelstudio_min_confidence
    )

    def work(deadline: Deadline) -> TaskPrediction:
        timer = StageTimer()
        done = segmenter.segment(image, options, timer, deadline)
        state.metrics.count_segmentation(
            predictor.folder.card.name, done.mean_confidence, timer.stages
        )
        return TaskPrediction(
            model_version=done.calibrator.manifest.id if done.calibrator else UNCALIBRATED,
            score=done.mean_confidence,
            result=regions_of(done, control),
        )

    async with state.admission.enter():
        return await state.admission.run(work)


def webhook(
    body: WebhookRequest,
    segmenter: SegmenterDep,
    collector: CollectorDep,
    model: ModelName = None,
) -> WebhookResponse:
    """Announce accepted annotations; they are read from Label Studio afterwards.

    Of created and updated annotations the ids are taken from the event, and nothing else. Once
    `SEGCAL_LABELSTUDIO_REFIT_IMAGES` images are new, a fit on all collected ones is queued, which
    is activated only where it is shown to be better. Other events are ignored.
    """
    if body.action not in ANNOTATED or body.annotation is None:
        return WebhookResponse(queued=0)
    found = body.annotation if isinstance(body.annotation, list) else [body.annotation]
    name = segmenter.predictor(model).folder.card.name
    collector.announce(name, [annotation.id for annotation in found])
    return WebhookResponse(queued=len(found))


def class_names(predictor: Predictor) -> list[str]:
    """Return the names of a model's classes."""
    return [info.name for info in predictor.folder.card.output.classes]


def version_of(segmenter: Segmenter, predictor: Predictor) -> str:
    """Return the id of the active calibrator."""
    stored = segmenter.calibrator(predictor, ACTIVE)
    return UNCALIBRATED if stored is None else stored.manifest.id


ROUTES: tuple[tuple[str, str, Callable[..., object], tuple[int, ...]], ...] = (
    ("GET", "health", health, ()),
    ("POST", "setup", setup, (404, 422, 503)),
    ("GET", "versions", versions, (404, 503)),
    ("POST", "predict", predict, SEGMENTATION),
    ("POST", "webhook", webhook, (404, 409, 422, 503)),
)
for _method, _name, _function, _errors in ROUTES:
    for _prefix, _suffix in (("/labelstudio", ""), ("/labelstudio/{model}", "_of_model")):
        router.add_api_route(
            f"{_prefix}/{_name}",
            _function,
            methods=[_method],
            operation_id=f"labelstudio_{_name}{_suffix}",
            responses=answers(*_errors),
        )
