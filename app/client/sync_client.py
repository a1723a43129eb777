"""Client of a running service."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, TypeVar, Unpack

import httpx2

from app.client import calls
from app.client.calls import Call, File, Part, SegmentArguments
from app.client.retries import RetryPolicy
from app.client.segmentation import ImageSource, Segmentation
from app.client.uploads import OnProgress, archives, opened
from app.errors import UnavailableError
from app.schemas.fit import FitOptions
from app.schemas.service import CalibratorInfo, CalibratorList, JobInfo, ModelInfo, SegmentResponse

T = TypeVar("T")
TIMEOUT_S = 600  # the service validates an upload before it responds
POLL_S = 0.5  # between two connections to the events of a job


class Client:
    """Connection to one service, to be used in a `with` statement; safe for threads.

    A response of 429 or 503 is waited for and the request sent again (`RetryPolicy`). Each method
    raises the SegcalError of a problem's status with its detail, and UnavailableError without a
    response.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is immutable
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._url, self._retries = calls.check_address(url), retries
        self._http = httpx2.Client(
            base_url=url,
            headers=calls.authorization(token),
            timeout=timeout_s,
            follow_redirects=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def segment(self, image: ImageSource, **options: Unpack[SegmentArguments]) -> Segmentation:
        """Segment an image: encoded bytes, a file's path, or RGB uint8 [H,W,3]."""
        return self._send(calls.segment(image, options))

    def describe(
        self, image: ImageSource, include: Iterable[Part] = (), **options: Unpack[SegmentArguments]
    ) -> SegmentResponse:
        """Segment an image; return its statistics, with the `include`d parts as PNG or RLE."""
        return self._send(calls.describe(image, include, options))

    def result(self, result_id: str, file: File) -> bytes:
        """Return a file of an earlier response, which is kept for a limited time."""
        return self._send(calls.result(result_id, file))

    def models(self) -> list[ModelInfo]:
        """List the models."""
        return self._send(calls.models())

    def model(self, name: str | None = None) -> ModelInfo:
        """Return one model, or the default one where no name is given."""
        return self._send(calls.model(name))

    def calibrators(self, model: str | None = None) -> CalibratorList:
        """List the versions of a model, newest first, and the damage of the others by id."""
        return self._send(calls.calibrators(model))

    def calibrator(self, version: str) -> CalibratorInfo:
        """Return the record of one version."""
        return self._send(calls.calibrator(version))

    def report(self, version: str) -> dict[str, object]:
        """Return the report of a version's fit."""
        return self._send(calls.report(version))

    def archive(self, version: str) -> bytes:
        """Return a version's manifest, parameters and report as a zip file."""
        return self._send(calls.archive(version))

    def activate(self, version: str, reason: str = "no reason given") -> CalibratorInfo:
        """Make a version the active one of its model and return its record."""
        return self._send(calls.activate(version, reason))

    def delete(self, version: str) -> None:
        """Delete a version that is not active."""
        self._send(calls.delete(version))

    def calibrate(
        self,
        paths: Mapping[str, Path],
        options: FitOptions = FitOptions(),  # noqa: B008 - it is immutable
        *,
        model: str | None = None,
        ignore_index: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> JobInfo:
        """Upload a validation set without loading it, and return the queued job.

        `paths` are files by field of `POST /calibrate`, or folders of images and label maps.
        """
        with archives(paths) as files:
            call = calls.calibrate(files, options, model, ignore_index, on_progress)
            return self._send(call)

    def jobs(self) -> list[JobInfo]:
        """List the calibration jobs, newest first."""
        return self._send(calls.jobs())

    def job(self, job_id: str) -> JobInfo:
        """Return a job's status."""
        return self._send(calls.job(job_id))

    def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job, a failed or interrupted one too."""
        return self._send(calls.cancel(job_id))

    def retry(self, job_id: str) -> JobInfo:
        """Queue a failed or interrupted job again, with its stored upload."""
        return self._send(calls.retry(job_id))

    def events(self, job_id: str) -> Iterator[JobInfo]:
        """Yield a job's status with every change; the stream may end before the job."""
        with self._open(calls.events(job_id)) as response:
            # The last event holds the report, which may be larger than httpx's limit.
            for event in httpx2.EventSource(response, max_event_size=None):
                yield calls.read_event(event)

    def wait(self, job_id: str, on_progress: OnProgress | None = None) -> JobInfo:
        """Report a job's progress until it ends; raises InputError if it does not succeed."""
        job = self.job(job_id)
        while calls.is_waiting(job):
            for status in self.events(job_id):
                if on_progress is not None:
                    on_progress(status.stage, status.progress)
            job = self.job(job_id)
            if calls.is_waiting(job):
                time.sleep(POLL_S)
        return calls.require_success(job)

    def _send(self, call: Call[T]) -> T:
        """Send a request and parse its response."""
        with self._open(call) as response:
            response.read()
            return call.parse(response)

    @contextmanager
    def _open(self, call: Call[T]) -> Iterator[httpx2.Response]:
        """Send a request, again after a wait where it is due; yield the response, its body unread.

        A service that rejects an upload may close the connection while data is being sent: httpx
        then stops sending and reads the response.
        """
        waits = self._retries.waits()
        while True:
            with ExitStack() as stack:
                parts = stack.enter_context(opened(call.files, call.on_progress))
                arguments = {**call.arguments, **({"files": parts} if parts else {})}
                try:
                    stream = self._http.stream(call.method, call.url, **arguments)
                    response = stack.enter_context(stream)
                    if response.is_success:
                        yield response
                        return
                    response.read()
                except httpx2.RequestError as error:
                    raise UnavailableError(
                        f"expected a service at {self._url}, got: {error}"
                    ) from error
                wait_s = self._retries.wait_s(response, next(waits, None))
                if wait_s is None:
                    raise calls.problem(response)
            time.sleep(wait_s)
