"""`/calibrate`: a fit on uploaded validation data, as a job that can be watched and stopped."""

import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.dependencies import AdminCheck, SegmenterDep, State, StateDep
from app.api.multipart import write_multipart
from app.calibration.dataset import Augmentation
from app.datasets.uploads import FIELDS, Limits, check, has_images, unpack
from app.errors import ArgumentError, NotFoundError
from app.inference.model_card import ModelFolder
from app.jobs.store import UPLOAD, WAITING, FitRequest, Job
from app.recalibration import Activate, candidates, require_comparable, require_inputs

router = APIRouter(prefix="/calibrate", tags=["calibration"])

POLL_S = 0.25  # any server process may run the job, and its files are all they share
CANCEL_S = 10.0  # to wait for a job to have stopped


class CalibrateForm(BaseModel):
    """The text fields of `POST /calibrate`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    method: str = "auto"
    activate: Activate = "if_better"
    allow_label_changes: bool = False
    augmentation: Augmentation = "none"
    ignore_index: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 255
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    note: Annotated[str, Field(max_length=1000)] = ""


class JobInfo(BaseModel):
    """A job; `progress` in 0..1, `remaining_s` an estimate, `report` there once it succeeded."""

    id: str
    model: str
    method: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
    stage: str
    progress: float
    remaining_s: float | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    error: str | None
    calibrator: str | None
    activated: bool
    note: str
    report: dict[str, object] | None


class JobList(BaseModel):
    """All jobs on record, newest first."""

    jobs: list[JobInfo]


BINARY = {"type": "string", "format": "binary"}
REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": dict.fromkeys(FIELDS, BINARY)
                    | CalibrateForm.model_json_schema()["properties"],
                }
            }
        },
    }
}


def get_job(job: str, state: StateDep) -> Job:
    """Find a job by its id."""
    return state.jobs.files.read(job)


JobDep = Annotated[Job, Depends(get_job)]


@router.post("", status_code=202, dependencies=[AdminCheck], openapi_extra=REQUEST_BODY)
async def calibrate(
    request: Request, response: Response, state: StateDep, segmenter: SegmenterDep
) -> JobInfo:
    """Refit from uploaded logits, or images, with labels.

    Either `logits` (+ `labels` and `image_index`, unless inside) as .npz, .npy or .safetensors, or
    `images` and `labels` as zip archives. `group_index` says which images belong together: they
    are never parted between fitting and testing. With `augmentation=corruptions` the fit also
    learns from copies of the images in fog, by night, in rain, noisy, blurred and pale.
    """
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


@router.get("")
def jobs(state: StateDep) -> JobList:
    """List the jobs on record, newest first."""
    return JobList(jobs=[describe(state, job) for job in state.jobs.files.all()])


@router.get("/{job}")
def job(job: JobDep, state: StateDep) -> JobInfo:
    """Tell how a job stands."""
    return describe(state, job)


@router.get("/{job}/events", response_class=EventSourceResponse)
async def events(job: JobDep, state: StateDep) -> AsyncIterator[JobInfo]:
    """Tell how a job stands, as server-sent events, whenever that changes and until it ends."""
    told = None
    while not state.readiness.draining.is_set():
        if job != told:
            yield await anyio.to_thread.run_sync(describe, state, job)
            told = job
        if job.state not in WAITING:
            return
        await anyio.sleep(POLL_S)
        try:
            job = await anyio.to_thread.run_sync(state.jobs.files.read, job.id)
        except NotFoundError:  # its record was deleted: there is nothing more to tell
            return


@router.delete("/{job}", dependencies=[AdminCheck])
def cancel(job: JobDep, state: StateDep) -> JobInfo:
    """Stop a job, or give up one that could be tried again; answers once it has stopped."""
    stopped = state.jobs.cancel(job.id)
    deadline = time.monotonic() + CANCEL_S
    while stopped.state in WAITING and time.monotonic() < deadline:
        time.sleep(POLL_S)
        stopped = state.jobs.files.read(job.id)
    return describe(state, stopped)


@router.post("/{job}/retry", status_code=202, dependencies=[AdminCheck])
def retry(job: JobDep, response: Response, state: StateDep) -> JobInfo:
    """Run a failed or interrupted job again, from the upload that was kept."""
    queued = state.jobs.retry(job.id)
    response.headers["Location"] = f"/calibrate/{queued.id}"
    return describe(state, queued)


def parse_form(texts: dict[str, str]) -> CalibrateForm:
    """Read the text fields; raises ArgumentError for the first that is wrong."""
    try:
        form = CalibrateForm.model_validate(texts)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArgumentError(
            f"{first['loc'][0]}: {first['msg']}, got {str(first['input'])[:80]!r}"
        ) from error
    candidates(form.method, form.allow_label_changes)
    return form


def admit(state: State, incoming: Path, form: CalibrateForm, folder: ModelFolder) -> Job:
    """Unpack and check an upload, and queue its fit; takes one pass over the data."""
    limits = Limits(
        unpacked_bytes=state.settings.max_calibration_bytes,
        image_bytes=state.settings.max_upload_bytes,
        image_pixels=state.settings.max_pixels,
    )
    unpack(incoming / UPLOAD, limits)
    contents = check(incoming / UPLOAD, folder.num_classes, form.ignore_index, limits)
    images = has_images(incoming / UPLOAD)
    if not images:
        require_inputs(form.method, augmentation=form.augmentation, maps=contents.maps)
    active = state.artifacts.active(folder.card.name, folder.sha256)
    if active is not None:
        require_comparable(active, images=images, maps=contents.maps)
    asked = form.model_dump() | {"model": folder.card.name, "model_sha256": folder.sha256}
    return state.jobs.submit(incoming, FitRequest(**asked))


def describe(state: State, job: Job) -> JobInfo:
    """Shape what is known of a job."""
    known = asdict(job)
    del known["owner"]
    return JobInfo(**known, report=state.jobs.files.report(job.id))
