"""`/calibrate`: jobs that fit a calibrator on uploaded validation data."""

import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse

from app.api.dependencies import AdminCheck, SegmenterDep, State, StateDep, TokenCheck
from app.api.multipart import write_multipart
from app.api.openapi import BINARY, answers
from app.api.openapi import UPLOAD as UPLOAD_ERRORS
from app.datasets.uploads import FIELDS, Limits, check, has_images, unpack, void_label
from app.errors import ArgumentError, NotFoundError
from app.inference.model_card import ModelFolder
from app.jobs.store import UPLOAD, FitRequest, Job
from app.recalibration import (
    candidates,
    comparable_version,
    require_comparable,
    require_inputs,
)
from app.schemas.fit import WAITING
from app.schemas.service import CalibrateForm, JobInfo, JobList
from app.settings import Settings

router = APIRouter(prefix="/calibrate", tags=["calibration"])

POLL_S = 0.25  # the job may run in another server process, which shares only its files
CANCEL_S = 10.0  # time within which DELETE waits for the job to stop


FILES = {
    "logits": "Logits [N,K,h,w] or [M,K] as .npz, .npy or .safetensors.",
    "labels": "Labels of the logits, or label maps as a zip archive.",
    "image_index": "The image of each row of a table [M,K].",
    "group_index": "The group of each image; groups are never split.",
    "images": "Images as a zip archive.",
}
REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {n: {**BINARY, "description": FILES[n]} for n in FIELDS}
                    | CalibrateForm.model_json_schema()["properties"],
                }
            }
        },
    }
}


def get_job(job: str, state: StateDep) -> Job:
    """Return a job by its id; raises NotFoundError."""
    return state.jobs.files.read(job)


JobDep = Annotated[Job, Depends(get_job)]


@router.post(
    "",
    operation_id="calibrate",
    status_code=202,
    dependencies=[AdminCheck],
    openapi_extra=REQUEST_BODY,
    responses=answers(404, 409, *UPLOAD_ERRORS, 507, status=202, headers=["Location"]),
)
async def calibrate(
    request: Request, response: Response, state: StateDep, segmenter: SegmenterDep
) -> JobInfo:
    """Fit a calibrator on uploaded logits or images, with labels.

    Either `logits` (+ `labels` and `image_index`, unless inside) as .npz, .npy or .safetensors, or
    `images` and `labels` as zip archives. `group_index` holds the group of each image; groups are
    never split between fit and test. `ignore_index` is the label of void pixels, by default that
    of the model's card, or 255 where the labels have 255 and not the card's. `routing` and the two
    temperatures are options of `selective` and `metacal`.
    """
    if misplaced := sorted(request.query_params):
        raise ArgumentError(f"expected options as form fields, got {misplaced} in the query")
    incoming = await anyio.to_thread.run_sync(state.jobs.reserve)
    try:
        texts = await write_multipart(
            request, incoming / UPLOAD, FIELDS, CalibrateForm.model_fields
        )
        form = parse_form(texts)
        folder = segmenter.predictor(form.model).folder
        work = partial(admit, state, incoming, form, folder)
        job = await anyio.to_thread.run_sync(work)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(state.jobs.release, incoming)
        raise
    response.headers["Location"] = f"/calibrate/{job.id}"
    return describe(state, job)


@router.get("", operation_id="list_jobs", dependencies=[TokenCheck], responses=answers())
def jobs(state: StateDep) -> JobList:
    """List all jobs, newest first."""
    return JobList(jobs=[describe(state, job) for job in state.jobs.files.all()])


@router.get("/{job}", operation_id="get_job", dependencies=[TokenCheck], responses=answers(404))
def job(job: JobDep, state: StateDep) -> JobInfo:
    """Return a job's status, and its report once it has succeeded."""
    return describe(state, job)


@router.get(
    "/{job}/events",
    operation_id="watch_job",
    response_class=EventSourceResponse,
    dependencies=[TokenCheck],
    responses=answers(404),
)
async def events(job: JobDep, state: StateDep) -> AsyncIterator[JobInfo]:
    """Send a job's status as server-sent events, with every change and until the job ends."""
    sent = None
    while not state.readiness.draining.is_set():
        if job != sent:
            yield await anyio.to_thread.run_sync(describe, state, job)
            sent = job
        if job.state not in WAITING:
            return
        await anyio.sleep(POLL_S)
        try:
            job = await anyio.to_thread.run_sync(state.jobs.files.read, job.id)
        except NotFoundError:  # its record was pruned
            return


@router.delete(
    "/{job}",
    operation_id="cancel_job",
    dependencies=[AdminCheck],
    responses=answers(404, 409, 507),
)
def cancel(job: JobDep, state: StateDep) -> JobInfo:
    """Cancel a job, a failed or interrupted one too; responds once it has stopped."""
    stopped = state.jobs.cancel(job.id)
    deadline = time.monotonic() + CANCEL_S
    while stopped.state in WAITING and time.monotonic() < deadline:
        time.sleep(POLL_S)
        stopped = state.jobs.files.read(job.id)
    return describe(state, stopped)


@router.post(
    "/{job}/retry",
    operation_id="retry_job",
    status_code=202,
    dependencies=[AdminCheck],
    responses=answers(404, 409, 429, 507, status=202, headers=["Location"]),
)
def retry(job: JobDep, response: Response, state: StateDep) -> JobInfo:
    """Queue a failed or interrupted job again, with its stored upload."""
    queued = state.jobs.retry(job.id)
    response.headers["Location"] = f"/calibrate/{queued.id}"
    return describe(state, queued)


def parse_form(texts: dict[str, str]) -> CalibrateForm:
    """Validate the text fields; raises ArgumentError for the first invalid one."""
    form = CalibrateForm.parse(texts)
    candidates(form)
    return form


def admit(state: State, incoming: Path, form: CalibrateForm, folder: ModelFolder) -> Job:
    """Unpack and validate an upload, its logits in one pass, and queue its fit."""
    unpack(incoming / UPLOAD, upload_limits(state.settings))
    return submit(state, incoming, form, folder)


def upload_limits(settings: Settings) -> Limits:
    """Return the limits of an upload that the settings state."""
    return Limits(
        unpacked_bytes=settings.max_calibration_bytes,
        image_bytes=settings.max_upload_bytes,
        image_pixels=settings.max_pixels,
    )


def submit(state: State, incoming: Path, form: CalibrateForm, folder: ModelFolder) -> Job:
    """Validate an unpacked upload and queue its fit."""
    limits = upload_limits(state.settings)
    upload, classes = incoming / UPLOAD, folder.num_classes
    output = folder.card.output
    void = void_label(upload, form.ignore_index, output.ignore_index, classes, limits.image_pixels)
    contents = check(upload, classes, void, limits, reduce_zero=output.reduce_zero_label)
    images = has_images(upload)
    if not images:
        require_inputs(form.method, maps=contents.maps)
    active = comparable_version(state.artifacts, folder)
    if active is not None:
        require_comparable(active, images=images, maps=contents.maps)
    model = {"model": folder.card.name, "model_sha256": folder.sha256}
    values = form.model_dump() | model | {"ignore_index": void}
    return state.jobs.submit(incoming, FitRequest.model_validate(values))


def describe(state: State, job: Job) -> JobInfo:
    """Return a job's status with its report."""
    return JobInfo(
        **job.model_dump(exclude={"owner"}),
        report=state.jobs.files.report(job.id),
    )
