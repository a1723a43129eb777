"""mosec: a worker that takes bytes; its processes run behind a server written in Rust."""

import sys

from mosec import Server, Worker

from benchmarks.serving.servers import Pipeline, read_plan


class Segmentation(Worker):
    """Segment an image's bytes; mosec itself writes the JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = Pipeline(read_plan())

    def deserialize(self, data: bytes) -> bytes:
        """Return the body unchanged: an encoded image."""
        return data

    def forward(self, data: bytes) -> dict[str, str]:
        """Segment one image."""
        return self.pipeline(data)


if __name__ == "__main__":
    plan = read_plan()
    sys.argv += ["--port", str(plan.port), "--address", "127.0.0.1", "--timeout", "120000"]
    server = Server()
    server.append_worker(Segmentation, num=plan.workers, route="/segment")
    server.run()
