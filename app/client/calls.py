"""Requests of the service by operation, and the types of their responses, without their sending."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.client.segmentation import ImageSource, Segmentation, encode_image, read_segmentation
from app.client.uploads import OnProgress
from app.errors import (
    ArgumentError,
    BusyError,
    ConflictError,
    InputError,
    MediaTypeError,
    NotFoundError,
    SegcalError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UndecodableError,
)
from app.schemas.fit import WAITING, FitOptions
from app.schemas.service import (
    CalibratorInfo,
    CalibratorList,
    JobInfo,
    JobList,
    ModelInfo,
    ModelList,
    SegmentResponse,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Part = Literal["mask", "confidence", "rle"]
File = Literal["mask.png", "confidence.png", "heatmap.png", "overlay.png", "data.npz"]
ERRORS: dict[int, type[SegcalError]] = {
    httpx2.codes.BAD_REQUEST: UndecodableError,
    httpx2.codes.UNAUTHORIZED: UnauthorizedError,
    httpx2.codes.NOT_FOUND: NotFoundError,
    httpx2.codes.CONFLICT: ConflictError,
    httpx2.codes.CONTENT_TOO_LARGE: TooLargeError,
    httpx2.codes.UNSUPPORTED_MEDIA_TYPE: MediaTypeError,
    httpx2.codes.UNPROCESSABLE_CONTENT: ArgumentError,
    httpx2.codes.TOO_MANY_REQUESTS: BusyError,
    httpx2.codes.SERVICE_UNAVAILABLE: UnavailableError,
}


class SegmentArguments(TypedDict, total=False):
    """Options of a segmentation, as of `POST /segment`; None and a missing one are the default.

    `model` is by default the service's; `calibrator` a version id, "active" or "none". At most one
    of `min_confidence` in [0,1] and `max_error` in (0,1) sets the threshold of abstention.
    """

    model: str | None
    calibrator: str
    min_confidence: float | None
    max_error: float | None
    tta: Literal["none", "flip", "multiscale"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request by method, path segments and httpx's arguments; `parse` reads its response.

    `files` are sent as parts of a form; `on_progress` is called while they are read.
    """

    method: str
    path: tuple[str, ...]
    parse: Callable[[httpx2.Response], T]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    on_progress: OnProgress | None = None

    @property
    def url(self) -> str:
        """The path relative to the service's address, escaped."""
        return "/".join(quote(segment, safe="") for segment in self.path)


def check_address(url: str) -> str:
    """Return the address of a service; raises ArgumentError for another text."""
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        address = httpx2.URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise ArgumentError(f"url: expected http:// or https:// and a host, got {url!r}")
    return url


def authorization(token: str | None) -> dict[bytes, bytes]:
    """Return the headers of an API or admin token, none without one."""
    return {b"Authorization": f"Bearer {token}".encode()} if token else {}


def segment(image: ImageSource, options: SegmentArguments) -> Call[Segmentation]:
    """Request the arrays of an image."""
    request = _image_request(image, options, "application/x-npz")
    return Call("POST", ("segment",), read_segmentation, request)


def describe(
    image: ImageSource, include: Iterable[Part], options: SegmentArguments
) -> Call[SegmentResponse]:
    """Request the statistics of an image, with the optional parts of their JSON."""
    request = _image_request(image, options, "application/json")
    request["params"]["include"] = ",".join(include)
    return Call("POST", ("segment",), _reader(SegmentResponse), request)


def result(result_id: str, file: File) -> Call[bytes]:
    """Request a file of an earlier response."""
    return Call("GET", ("results", result_id, file), read_body)


def models() -> Call[list[ModelInfo]]:
    """Request the models."""
    read = _reader(ModelList)
    return Call("GET", ("models",), lambda response: read(response).models)


def model(name: str | None) -> Call[ModelInfo]:
    """Request one model, or the default one where no name is given."""
    if name is not None:
        return Call("GET", ("models", name), _reader(ModelInfo))
    read = _reader(ModelList)
    return Call("GET", ("models",), lambda response: default_model(read(response).models))


def default_model(listed: list[ModelInfo]) -> ModelInfo:
    """Return the default one of the models; raises ArgumentError without one."""
    for each in listed:
        if each.default:
            return each
    names = sorted(each.name for each in listed)
    raise ArgumentError(f"model: expected one of the models {names}, got no name and no default")


def calibrators(of_model: str | None) -> Call[CalibratorList]:
    """Request the versions of a model."""
    query = {"model": of_model} if of_model else {}
    return Call("GET", ("calibrators",), _reader(CalibratorList), {"params": query})


def calibrator(version: str) -> Call[CalibratorInfo]:
    """Request the record of one version."""
    return Call("GET", ("calibrators", version), _reader(CalibratorInfo))


def report(version: str) -> Call[dict[str, object]]:
    """Request the report of a version's fit."""
    return Call("GET", ("calibrators", version, "report"), read_object)


def archive(version: str) -> Call[bytes]:
    """Request a version's files as a zip archive."""
    return Call("GET", ("calibrators", version, "archive"), read_body)


def activate(version: str, reason: str) -> Call[CalibratorInfo]:
    """Request that a version becomes the active one."""
    body = {"json": {"reason": reason}}
    return Call("POST", ("calibrators", version, "activate"), _reader(CalibratorInfo), body)


def delete(version: str) -> Call[bytes]:
    """Request the deletion of a version."""
    return Call("DELETE", ("calibrators", version), read_body)


def calibrate(
    files: Mapping[str, Path],
    options: FitOptions,
    of_model: str | None,
    ignore_index: int | None,
    on_progress: OnProgress | None,
) -> Call[JobInfo]:
    """Request a fit on the files of a validation set."""
    given = {**options.model_dump(), "model": of_model, "ignore_index": ignore_index}
    fields = {name: value for name, value in given.items() if value is not None}
    return Call("POST", ("calibrate",), _reader(JobInfo), {"data": fields}, files, on_progress)


def jobs() -> Call[list[JobInfo]]:
    """Request all jobs."""
    read = _reader(JobList)
    return Call("GET", ("calibrate",), lambda response: read(response).jobs)


def job(job_id: str) -> Call[JobInfo]:
    """Request one job."""
    return Call("GET", ("calibrate", job_id), _reader(JobInfo))


def events(job_id: str) -> Call[None]:
    """Request the events of a job, which are read as they come."""
    return Call("GET", ("calibrate", job_id, "events"), lambda _response: None)


def cancel(job_id: str) -> Call[JobInfo]:
    """Request that a job stops."""
    return Call("DELETE", ("calibrate", job_id), _reader(JobInfo))


def retry(job_id: str) -> Call[JobInfo]:
    """Request a failed or interrupted job again."""
    return Call("POST", ("calibrate", job_id, "retry"), _reader(JobInfo))


def is_waiting(found: JobInfo) -> bool:
    """Return whether a job has not ended."""
    return found.state in WAITING


def require_success(found: JobInfo) -> JobInfo:
    """Return a job that has succeeded; raises InputError with the error of another one."""
    if found.state != "succeeded":
        raise InputError(found.error or f"expected the fit to finish, got it {found.state}")
    return found


def problem(response: httpx2.Response) -> SegcalError:
    """Return the exception for a response of 400 and above, with the detail of its problem."""
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        status = f"{response.status_code} {response.reason_phrase}"
        return InputError(f"expected a response of segcal, got {status}")
    return ERRORS.get(response.status_code, InputError)(detail)


def read_event(event: httpx2.ServerSentEvent) -> JobInfo:
    """Read a job's status from an event; raises InputError."""
    return _validated(JobInfo, event.data.encode())


def read_body(response: httpx2.Response) -> bytes:
    """Return the body of a response."""
    return response.read()


def read_object(response: httpx2.Response) -> dict[str, object]:
    """Return the JSON object of a response; raises InputError."""
    return _validated(dict[str, object], response.read())


def _reader(schema: type[M]) -> Callable[[httpx2.Response], M]:
    return lambda response: _validated(schema, response.read())


def _validated(schema: type[T], body: bytes) -> T:
    try:
        return TypeAdapter(schema).validate_json(body)
    except ValidationError as error:
        raise InputError(f"expected a response of segcal, got {body[:80]!r}") from error


def _image_request(image: ImageSource, options: SegmentArguments, accept: str) -> dict[str, Any]:
    return {
        "params": {name: value for name, value in options.items() if value is not None},
        "content": encode_image(image),
        "headers": {"Content-Type": "image/*", "Accept": accept},
    }
