"""State shared by the routes, as typed FastAPI dependencies."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.api import auth as tokens
from app.api.diagrams import Diagrams
from app.api.metrics import ServiceMetrics
from app.api.uploads import UploadBuffer
from app.conversion.export_process import Exporter
from app.deadline import Deadline
from app.errors import BusyError, UnavailableError
from app.imaging import DecoderPool
from app.inference.threads import ActiveRequests
from app.jobs.queue import Jobs
from app.serving.drift_monitor import DriftMonitor
from app.serving.reload import LoadReport
from app.serving.result_cache import Results
from app.serving.segmenter import Segmenter
from app.settings import Settings
from app.storage.artifacts import ArtifactStore

T = TypeVar("T")

# Security schemes of the OpenAPI document only; `tokens.check` reads the header.
API_TOKEN = HTTPBearer(
    scheme_name="api_token", description="Where SEGCAL_API_TOKENS is set.", auto_error=False
)
METRICS_TOKEN = HTTPBearer(
    scheme_name="metrics_token",
    description="Where SEGCAL_METRICS_TOKEN or SEGCAL_API_TOKENS is set.",
    auto_error=False,
)
ADMIN_TOKEN = HTTPBearer(scheme_name="admin_token", auto_error=False)


class Admission:
    """Runs up to `workers` requests at once, queues up to `queue_limit`, rejects the rest.

    The work of a request, with its wait for a thread, ends after `timeout_s`. `active_requests`
    counts the running and the queued ones, `running` those that have a thread.
    """

    def __init__(
        self,
        workers: int,
        queue_limit: int,
        timeout_s: float,
        active_requests: ActiveRequests | None = None,
    ) -> None:
        self.active_requests = active_requests or ActiveRequests()
        self.running = ActiveRequests()
        self._timeout_s = timeout_s
        self._deadlines: set[Deadline] = set()
        self._threads = ThreadPoolExecutor(workers, "requests")
        self._places_left = workers + queue_limit

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Hold a place among the running and queued requests; raises BusyError without one."""
        self.require_place()
        self._places_left -= 1
        try:
            yield
        finally:
            self._places_left += 1

    def require_place(self) -> None:
        """Raise BusyError without a free place, for requests that would need one later."""
        if self._places_left <= 0:
            raise BusyError("expected fewer requests at once, got a full queue")

    async def run(self, work: Callable[[Deadline], T]) -> T:
        """Run blocking work in a thread of the pool, in order of arrival.

        Raises UnavailableError after the timeout, as soon as the work checks its deadline: the
        thread is free then.
        """
        deadline = Deadline()

        def guarded() -> T:
            try:
                deadline.check()
                with self.running.enter():
                    return work(deadline)
            except StopIteration as error:  # a future rejects it and would never complete
                raise RuntimeError("expected an answer, got a stop of iteration") from error

        loop = asyncio.get_running_loop()
        reason = (
            f"expected a response within {self._timeout_s:g} s, got a request that takes longer"
        )
        timer = loop.call_later(self._timeout_s, deadline.expire, reason)
        self._deadlines.add(deadline)
        try:
            with self.active_requests.enter():
                # In the request's context, which holds the id that its log lines have.
                work_in_context = partial(contextvars.copy_context().run, guarded)
                return await loop.run_in_executor(self._threads, work_in_context)
        except asyncio.CancelledError:
            deadline.check()  # at shutdown, 503 where the work could not be stopped
            raise
        finally:
            timer.cancel()
            self._deadlines.discard(deadline)

    def expire(self, reason: str) -> None:
        """End the work of all running and queued requests, with 503."""
        for deadline in self._deadlines:
            deadline.expire(reason)


@dataclass
class Readiness:
    """The readiness to serve requests, or the reason why it is missing."""

    segmenter: Segmenter | None = None
    reason: str = "models are loading"
    refused: dict[str, str] = field(default_factory=dict)
    draining: threading.Event = field(default_factory=threading.Event)
    loading: threading.Lock = field(default_factory=threading.Lock)  # held while models load

    def require(self) -> Segmenter:
        """Return the segmenter; raises UnavailableError while loading and draining."""
        if self.draining.is_set():
            raise UnavailableError("expected a running service, got one that is shutting down")
        if self.segmenter is None:
            raise UnavailableError(f"expected a ready service, got: {self.reason}")
        return self.segmenter


@dataclass(frozen=True)
class State:
    """State of the application, shared by all requests."""

    settings: Settings
    admin_token: str
    readiness: Readiness
    admission: Admission
    results: Results
    metrics: ServiceMetrics
    drift: DriftMonitor
    artifacts: ArtifactStore
    diagrams: Diagrams
    uploads: UploadBuffer
    jobs: Jobs
    decoders: DecoderPool
    exporter: Exporter
    load_models: Callable[["State"], LoadReport]
    reload_others: Callable[[], None]  # where several processes serve the application


def alone() -> None:
    """Reload no models, as no other process serves the application."""


async def run_on_body(
    request: Request,
    state: State,
    work: Callable[[bytes, Deadline], T],
    read: Callable[[bytearray], Awaitable[bytes]] | None = None,
) -> T:
    """Receive a whole body, then run blocking work on it, or on what `read` takes from it.

    The place is taken once the body is complete: a client that sends none holds no place. Raises
    BusyError where the queue or the upload buffer is full, and as `Admission.run`.
    """
    state.admission.require_place()
    async with state.uploads.receive(request) as received:
        body = bytes(received) if read is None else await read(received)
        received.clear()
        async with state.admission.enter():
            return await state.admission.run(lambda deadline: work(body, deadline))


async def get_state(request: Request) -> State:
    """Return the application's state.

    A coroutine, as are those below: FastAPI would run a plain function in a thread.
    """
    state: State = request.app.state.segcal
    return state


async def get_segmenter(state: Annotated[State, Depends(get_state)]) -> Segmenter:
    """Return the segmenter; raises UnavailableError while loading and draining."""
    return state.readiness.require()


async def check_token(
    request: Request,
    state: Annotated[State, Depends(get_state)],
    _scheme: Annotated[object, Depends(API_TOKEN)],
) -> None:
    """Require an API token or the admin token, where API tokens are configured."""
    if state.settings.api_tokens:
        tokens.check(
            request.headers.get("authorization", ""),
            (*state.settings.api_tokens, state.admin_token),
        )


async def check_metrics(
    request: Request,
    state: Annotated[State, Depends(get_state)],
    _scheme: Annotated[object, Depends(METRICS_TOKEN)],
) -> None:
    """Require the metrics token or the admin token, where a metrics token is configured.

    Without one the rule is that of `check_token`.
    """
    settings = state.settings
    accepted = (settings.metrics_token,) if settings.metrics_token else settings.api_tokens
    if accepted:
        authorization = request.headers.get("authorization", "")
        tokens.check(authorization, (*accepted, state.admin_token))


async def check_admin(
    request: Request,
    state: Annotated[State, Depends(get_state)],
    _scheme: Annotated[object, Depends(ADMIN_TOKEN)],
) -> None:
    """Require the admin token."""
    tokens.check(request.headers.get("authorization", ""), (state.admin_token,))


StateDep = Annotated[State, Depends(get_state)]
SegmenterDep = Annotated[Segmenter, Depends(get_segmenter)]
TokenCheck = Depends(check_token)
MetricsCheck = Depends(check_metrics)
AdminCheck = Depends(check_admin)
