"""Map a function over items on a pool of Ray actors, each of which holds a model."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from app.errors import SegcalError, SetupError, UnavailableError

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"


class Worker(Generic[T, R]):
    """An actor: builds its function once and applies it to batches of items."""

    def __init__(self, build: Callable[[], Callable[[T], R]]) -> None:
        self._work = build()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Apply the function to the pickled column `item`."""
        from ray import cloudpickle  # noqa: PLC0415 - an optional package

        results = [self._result(cloudpickle.loads(item)) for item in batch["item"]]
        return {"index": batch["index"], "result": [cloudpickle.dumps(one) for one in results]}

    def _result(self, item: T) -> R | SegcalError:
        """Return the result, or an error for the caller: Ray would wrap one that is raised."""
        try:
            return self._work(item)
        except SegcalError as error:
            return error


@contextmanager
def cluster(address: str, cpus: int) -> Iterator[None]:
    """Connect to the Ray cluster at an address; `local` starts one of `cpus` cores here.

    The connection is closed afterwards, a local cluster ended. Raises SetupError without Ray and
    UnavailableError where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's authors
    try:
        import ray  # noqa: PLC0415 - an optional package
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise SetupError(
            f"expected the extra packages of `pip install segcal[ray]`, got: {error}"
        ) from error
    local = {"num_cpus": cpus, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"expected a Ray cluster at {address}, got: {str(error).splitlines()[0]}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def map_on_actors(
    build: Callable[[], Callable[[T], R]], items: Sequence[T], items_of_a_task: int = 1
) -> Iterator[tuple[int, R]]:
    """Yield the index and the result of each item, in any order, from one actor for each core.

    `build` runs once in each actor. An actor that dies is started again, with the items that it had
    """
    import ray  # noqa: PLC0415 - an optional package
    from ray import cloudpickle  # noqa: PLC0415

    if not items:
        return
    tasks = math.ceil(len(items) / items_of_a_task)
    actors = max(min(int(ray.cluster_resources().get("CPU", 1)), tasks), 1)
    rows = [{"index": n, "item": cloudpickle.dumps(item)} for n, item in enumerate(items)]
    results = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        Worker,
        fn_constructor_args=(build,),
        compute=ray.data.ActorPoolStrategy(size=actors),
        batch_size=1,  # each result is passed on when it is there
        num_cpus=1,
    )
    for row in results.iter_rows():
        result = cloudpickle.loads(row["result"])
        if isinstance(result, SegcalError):
            raise result
        yield int(row["index"]), result
