"""What the routes share: built by the factory, reached through typed dependencies."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.api import auth as tokens
from app.api.metrics import ServiceMetrics
from app.errors import BusyError, UnavailableError
from app.inference.threads import ActiveRequests
from app.jobs.queue import Jobs
from app.serving.drift_monitor import DriftMonitor
from app.serving.result_cache import ResultCache
from app.serving.segmenter import Segmenter
from app.settings import Settings
from app.storage.artifacts import ArtifactStore

T = TypeVar("T")

# They tell the OpenAPI document which calls carry what; `tokens.check` reads the header.
API_TOKEN = HTTPBearer(
    scheme_name="api_token", description="Where SEGCAL_API_TOKENS is set.", auto_error=False
)
ADMIN_TOKEN = HTTPBearer(scheme_name="admin_token", auto_error=False)


class Admission:
    """Lets a few requests work at once and a bounded number wait; refuses the rest at once.

    Whoever works or waits for it is in `active_requests`.
    """

    def __init__(self, workers: int, queue_limit: int) -> None:
        self.active_requests = ActiveRequests()
        self._threads = ThreadPoolExecutor(workers, "requests")
        self._places_left = workers + queue_limit

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Hold one of the places; raises BusyError when none is left."""
        if self._places_left <= 0:
            raise BusyError("expected fewer requests at once, got a full queue")
        self._places_left -= 1
        try:
            yield
        finally:
            self._places_left += 1

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread, off the event loop, when it is this caller's turn."""

        def guarded() -> T:
            try:
                return work()
            except StopIteration as error:  # no future can hold it: whoever awaits it never wakes
                raise RuntimeError("expected an answer, got a stop of iteration") from error

        with self.active_requests.enter():
            return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)


@dataclass
class Readiness:
    """Whether requests can be served, and if not, why."""

    segmenter: Segmenter | None = None
    reason: str = "models are loading"
    refused: dict[str, str] = field(default_factory=dict)
    draining: threading.Event = field(default_factory=threading.Event)

    def require(self) -> Segmenter:
        """Give the segmenter; raises UnavailableError before and after its time."""
        if self.draining.is_set():
            raise UnavailableError("expected a running service, got one that is shutting down")
        if self.segmenter is None:
            raise UnavailableError(f"expected a ready service, got: {self.reason}")
        return self.segmenter


@dataclass(frozen=True)
class State:
    """Everything a request may need."""

    settings: Settings
    admin_token: str
    readiness: Readiness
    admission: Admission
    results: ResultCache
    metrics: ServiceMetrics
    drift: DriftMonitor
    artifacts: ArtifactStore
    jobs: Jobs


async def get_state(request: Request) -> State:
    """Give the state that the factory put on the application.

    Like those below a coroutine that awaits nothing: FastAPI gives every function a thread.
    """
    state: State = request.app.state.segcal
    return state


async def get_segmenter(state: Annotated[State, Depends(get_state)]) -> Segmenter:
    """Give the loaded models, or refuse."""
    return state.readiness.require()


async def check_token(
    request: Request,
    state: Annotated[State, Depends(get_state)],
    _told: Annotated[object, Depends(API_TOKEN)],
) -> None:
    """Let in whoever carries an API token or the admin's, and everyone where none is set."""
    if state.settings.api_tokens:
        tokens.check(
            request.headers.get("authorization", ""),
            (*state.settings.api_tokens, state.admin_token),
        )


async def check_admin(
    request: Request,
    state: Annotated[State, Depends(get_state)],
    _told: Annotated[object, Depends(ADMIN_TOKEN)],
) -> None:
    """Let in whoever carries the admin token."""
    tokens.check(request.headers.get("authorization", ""), (state.admin_token,))


StateDep = Annotated[State, Depends(get_state)]
SegmenterDep = Annotated[Segmenter, Depends(get_segmenter)]
TokenCheck = Depends(check_token)
AdminCheck = Depends(check_admin)
