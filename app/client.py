"""Typed HTTP client of a running service, for `--url` of the command line.

The response types hold the fields that the command line reads; the service sends more.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Self, TypedDict
from urllib.parse import quote

import httpx2

from app.errors import ArgumentError, InputError, UnavailableError

TIMEOUT_S = 600  # the service validates an upload before it responds
UNFINISHED = ("queued", "running")
POLL_S = 0.5  # between two connections to the events of a job

OnProgress = Callable[[str, float], None]  # called with a stage and its fraction done, in 0..1


class Model(TypedDict):
    """A model; `classes` have a `name` and a `color`, `active_calibrator` is a version id."""

    name: str
    default: bool
    title: str
    license: str
    source: str
    sha256: str
    weights_sha256: str
    classes: list[dict[str, Any]]
    ignore_index: int
    reduce_zero_label: bool
    active_calibrator: str | None
    metrics: dict[str, float | int | str]


class Calibrator(TypedDict):
    """A calibrator version; ECE is image-wise, 10 bins, on images held out from the fit."""

    id: str
    model: str
    model_sha256: str
    method: str
    images: int
    ece_before: float
    ece_after: float
    active: bool


class Job(TypedDict):
    """A calibration job; `progress` in 0..1, `calibrator` and `report` once it succeeded."""

    id: str
    state: str
    stage: str
    progress: float
    error: str | None
    calibrator: str
    report: dict[str, Any]


class Segmentation(TypedDict):
    """One image's statistics; `mask` and `confidence` hold a PNG as base64 in `data`."""

    model: str
    width: int
    height: int
    mean_confidence: float
    abstained_fraction: float
    mask: dict[str, str]
    confidence: dict[str, str]
    calibration: dict[str, Any]


class Client:
    """Connection to one service, to be used in a `with` statement.

    Each method raises InputError, with the `detail` of the problem document, for a response of
    status 4xx or 5xx, and UnavailableError without a response.
    """

    def __init__(self, url: str, token: str | None) -> None:
        try:
            address = httpx2.URL(url)
        except httpx2.InvalidURL:
            address = httpx2.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise ArgumentError(f"--url: expected http:// or https:// and a host, got {url!r}")
        self._url = url
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else None
        self._http = httpx2.Client(
            base_url=url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def segment(self, image: bytes, query: Mapping[str, str]) -> Segmentation:
        """Return mask, confidence and statistics of an encoded image."""
        query = {**query, "include": "mask,confidence"}
        headers = {"Content-Type": "image/*", "Accept": "application/json"}
        request = {"params": query, "content": image, "headers": headers}
        body: Segmentation = self._json("POST", "segment", **request)
        return body

    def segment_npz(self, image: bytes, query: Mapping[str, str]) -> bytes:
        """Return the arrays `mask` and `confidence` of an encoded image as an .npz file."""
        headers = {"Content-Type": "image/*", "Accept": "application/x-npz"}
        return self._read("POST", "segment", params=query, content=image, headers=headers)

    def models(self) -> list[Model]:
        """List the service's models."""
        models: list[Model] = self._json("GET", "models")["models"]
        return models

    def model(self, name: str | None) -> Model:
        """Return one model, or the default one where no name is given."""
        if name is not None:
            named: Model = self._json("GET", "models", name)
            return named
        models = self.models()
        for model in models:
            if model["default"]:
                return model
        names = sorted(model["name"] for model in models)
        raise InputError(f"expected one of the models {names}, got none by name and no default")

    def calibrators(self, model: str | None) -> tuple[list[Calibrator], dict[str, str]]:
        """List the versions of a model, newest first, and the damage of the others by id."""
        query = {"model": model} if model else {}
        body = self._json("GET", "calibrators", params=query)
        return body["calibrators"], body.get("damaged", {})

    def calibrator(self, version: str) -> Calibrator:
        """Return the record of one version."""
        record: Calibrator = self._json("GET", "calibrators", version)
        return record

    def calibrator_report(self, version: str) -> dict[str, object]:
        """Return the report of a version's fit."""
        report: dict[str, object] = self._json("GET", "calibrators", version, "report")
        return report

    def activate(self, version: str, reason: str) -> Calibrator:
        """Make a version the active one of its model and return its record."""
        body = {"reason": reason}
        record: Calibrator = self._json("POST", "calibrators", version, "activate", json=body)
        return record

    def archive(self, version: str) -> bytes:
        """Return a version's manifest, parameters and report as a zip file."""
        return self._read("GET", "calibrators", version, "archive")

    def calibrate(
        self,
        files: Mapping[str, Path],
        fields: Mapping[str, str | float],
        on_progress: OnProgress,
    ) -> Job:
        """Upload the files of a validation set without loading them, and return the queued job."""
        total, sent = sum(path.stat().st_size for path in files.values()), 0

        def on_read(size: int) -> None:
            nonlocal sent
            sent += size
            on_progress("uploading", sent / max(total, 1))

        with ExitStack() as stack:
            parts = {
                name: ("data", stack.enter_context(ReportingFile(path, on_read)))
                for name, path in files.items()
            }
            job: Job = self._json("POST", "calibrate", data=fields, files=parts)
        return job

    def follow_job(self, job_id: str, on_progress: OnProgress) -> Job:
        """Report a job's progress until it ends; raises InputError if it does not succeed."""
        job: Job = self._json("GET", "calibrate", job_id)
        while job["state"] in UNFINISHED:  # the events may end before the job
            with self._open("GET", "calibrate", job_id, "events") as response:
                # The last event holds the report, which may be larger than httpx's limit.
                for event in httpx2.EventSource(response, max_event_size=None):
                    progress: Any = event.json()
                    on_progress(progress["stage"], progress["progress"])
            job = self._json("GET", "calibrate", job_id)
            if job["state"] in UNFINISHED:
                time.sleep(POLL_S)
        if job["state"] != "succeeded":
            raise InputError(job["error"] or f"expected the fit to finish, got it {job['state']}")
        return job

    def _json(self, method: str, *path: str, **request: Any) -> Any:  # noqa: ANN401 - any JSON
        """Send a request and return the JSON of its response."""
        body = self._read(method, *path, **request)
        try:
            return json.loads(body)
        except ValueError as error:
            raise InputError(f"expected a response of segcal, got {body[:80]!r}") from error

    def _read(self, method: str, *path: str, **request: Any) -> bytes:  # noqa: ANN401 - httpx's
        """Send a request and return the body of its response."""
        with self._open(method, *path, **request) as response:
            return response.read()

    @contextmanager
    def _open(self, method: str, *path: str, **request: Any) -> Iterator[httpx2.Response]:  # noqa: ANN401 - httpx's
        """Send a request to a path, given by its segments; yield the response, its body unread.

        A service that rejects an upload may close the connection while data is being sent: httpx
        then stops sending and reads the response.
        """
        segments = (quote(segment, safe="") for segment in path)
        try:
            with self._http.stream(method, "/".join(segments), **request) as response:
                if not response.is_success:
                    response.read()
                    raise InputError(problem_detail(response))
                yield response
        except httpx2.RequestError as error:
            raise UnavailableError(f"expected a service at {self._url}, got: {error}") from error


class ReportingFile(FileIO):
    """A file that reports the number of bytes of each read."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes."""
        data = super().read(size)
        self._on_read(len(data))
        return data


def problem_detail(response: httpx2.Response) -> str:
    """Return the `detail` of a problem document, or the status of a response without one."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        status = f"{response.status_code} {response.reason_phrase}"
        return f"expected a response of segcal, got {status}"
