"""Replicas of the service on one machine, which share a bucket, and HAProxy before them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.api.test_server import Served, free_port
from tests.deploy.test_haproxy import ADMIN, TOKEN, answers, balancing
from tests.factories.jobs import wait_for
from tests.storage.buckets import open_moto

URL = "s3://bucket/artifacts"
MODELS = "models"
# Of a line of HAProxy's log: connections and, last, the attempts after the first one.
ATTEMPTS = re.compile(r" (?:\d+/){4}\+?(\d+) \d+/\d+ ")


@dataclass
class Replica:
    """A server process with a state folder of its own, killed and started again on one port."""

    folder: Path
    served: Served = field(init=False)
    client: httpx2.Client = field(init=False)  # of all processes, one after the other

    def __post_init__(self) -> None:
        self.folder.mkdir()
        port = free_port()
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.start(port)

    @property
    def state(self) -> Path:
        """Folder of jobs."""
        return self.folder / "state"

    def start(self, port: int) -> None:
        """Start the process."""
        self.served = Served(
            self.folder,
            port,
            MODELS_DIR=str(self.folder.parent / MODELS),
            ARTIFACTS_DIR=URL,
            STATE_DIR=str(self.state),
            ADMIN_TOKEN=TOKEN,
            WORKERS="1",
            CLIENT_CONNECTION_LIMIT="512",  # all clients have the balancer's address
        )

    def kill(self) -> None:
        """Kill the process with SIGKILL and start it again at once."""
        self.served.end()
        self.start(self.served.port)

    def end(self) -> None:
        """End the process for good."""
        self.served.end()
        self.client.close()

    def is_ready(self) -> bool:
        """Return whether the replica has loaded its models."""
        return answers(self.client)

    def request(self, method: str, path: str, **options: object) -> httpx2.Response | None:
        """Send a request as admin; None where the replica was killed meanwhile."""
        try:
            return self.client.request(method, path, headers=ADMIN, **options)  # type: ignore[arg-type]
        except httpx2.TransportError:
            return None


@dataclass(frozen=True)
class Fleet:
    """The replicas, the balancer's address and its log."""

    replicas: Sequence[Replica]
    url: str
    log: Path

    def ready(self) -> list[Replica]:
        """List the replicas that are ready."""
        return [replica for replica in self.replicas if replica.is_ready()]

    def repeated(self) -> int:
        """Count the requests that HAProxy sent more than once."""
        found = ATTEMPTS.finditer(self.log.read_text("utf-8", "replace"))
        return sum(match[1] != "0" for match in found)


@contextmanager
def open_bucket() -> Iterator[None]:
    """Run a server of S3 that the service's usual variables point to."""
    with pytest.MonkeyPatch.context() as monkeypatch, open_moto(monkeypatch):
        yield


@contextmanager
def open_fleet(folder: Path, count: int) -> Iterator[Fleet]:
    """Start replicas and the balancer over the folder's models, once all are ready."""
    with ExitStack() as stack:
        replicas = []
        for number in range(count):
            replicas.append(Replica(folder / f"replica-{number}"))
            stack.callback(replicas[-1].end)
        wait_for(lambda: all(replica.is_ready() for replica in replicas), "replicas that are ready")
        url = stack.enter_context(balancing(folder, [each.served.port for each in replicas]))
        with httpx2.Client(base_url=url) as client:
            wait_for(lambda: answers(client), "the balancer to find the replicas")
        yield Fleet(replicas, url, folder / "haproxy.log")
