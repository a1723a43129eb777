"""Group of the server processes of one service on one machine, which share a port and a folder."""

from dataclasses import dataclass
from pathlib import Path

COUNT_BYTES = 8  # of a process's number of active requests


@dataclass(frozen=True)
class ProcessGroup:
    """One of the `count` server processes of a service, which share `folder` while it runs.

    `replacement` is true for a process that was started in the place of one that has ended.
    """

    folder: Path
    count: int
    index: int = 0
    replacement: bool = False

    @property
    def results(self) -> Path:
        """Folder of the kept results and of the drift windows."""
        return self.folder / "results"

    @property
    def metrics(self) -> Path:
        """Folder of the metrics of prometheus_client's multiprocess mode."""
        return self.folder / "metrics"

    @property
    def active_requests(self) -> Path:
        """File of the numbers of active requests, an int64 for each process."""
        return self.folder / "active"

    @property
    def answers_while_loading(self) -> bool:
        """True for the process that answers before its models are loaded: one, at the start.

        The others accept connections only with their models, as all of them share the port.
        """
        return self.index == 0 and not self.replacement

    def create(self) -> None:
        """Create the files in an empty folder."""
        self.results.mkdir()
        self.metrics.mkdir()
        self.active_requests.write_bytes(bytes(self.count * COUNT_BYTES))

    def clear_active_requests(self) -> None:
        """Set this process's number of active requests to zero, once it has ended."""
        with self.active_requests.open("r+b") as file:
            file.seek(self.index * COUNT_BYTES)
            file.write(bytes(COUNT_BYTES))
