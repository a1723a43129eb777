"""Map a function over items on a pool of Ray actors, each of which holds a model."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from app.errors import ArgumentError, SegcalError, SetupError, UnavailableError

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"
CONNECT_S = 20.0  # for a cluster to answer
PORT_S = 5.0  # of it, for the address to accept a connection
# A process of its own, since `ray.init` waits for minutes and may end its process.
PROBE = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    sys.exit("got: " + str(error).partition("\\n")[0])
"""


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

    The connection is closed afterwards, a local cluster ended. Raises SetupError without Ray,
    UnavailableError where no cluster answers within `CONNECT_S`, and as `require_cluster`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to Ray's authors
    try:
        import ray  # noqa: PLC0415 - an optional package
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise SetupError(
            f"expected the extra packages of `pip install segcal[ray]`, got: {error}"
        ) from error
    if address == LOCAL:
        ray.init(LOCAL, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    else:
        require_cluster(address)
        ray.init(address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def require_cluster(address: str) -> None:
    """Raise UnavailableError unless a Ray cluster answers at an address within `CONNECT_S`.

    Raises ArgumentError for an address of Ray Client, over which Ray Data does not run.
    """
    if address.startswith("ray://"):
        raise ArgumentError(
            "--ray: expected local, auto or host:port of a cluster to which this machine belongs, "
            f"got {address}, an address of Ray Client; run the command in the cluster, for example "
            "by `ray job submit`"
        )
    expected = f"--ray: expected a Ray cluster at {address} that answers within {CONNECT_S:.0f} s"
    host, _, port = address.rpartition(":")
    if port.isdecimal():  # `auto` has none
        try:
            socket.create_connection((host, int(port)), PORT_S).close()
        except OSError as error:
            raise UnavailableError(f"{expected}, got: {error.strerror or error}") from error
    try:
        done = subprocess.run(  # noqa: S603 - the address is the user's own
            [sys.executable, "-c", PROBE, address],
            capture_output=True, text=True, timeout=CONNECT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{expected}, got no answer") from error
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("got: ")]
        raise UnavailableError(f"{expected}, {(reasons or ['got none'])[-1]}")


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
