"""Ray Serve: a deployment behind FastAPI, with as many replicas as there are workers."""

import threading
from typing import Annotated

import ray
from fastapi import FastAPI, File
from ray import serve

from benchmarks.serving.servers import ENVIRONMENT, Pipeline, read_plan

app = FastAPI()


@serve.deployment
@serve.ingress(app)
class Segmentation:
    """Serve one endpoint; Ray makes an instance in every replica."""

    def __init__(self) -> None:
        self.pipeline = Pipeline(read_plan())

    @app.post("/segment")
    def segment(self, image: Annotated[bytes, File()]) -> dict[str, str]:
        """Segment one image."""
        return self.pipeline(image)


if __name__ == "__main__":
    plan = read_plan()
    ray.init(
        include_dashboard=False,
        runtime_env={"env_vars": {ENVIRONMENT: plan.to_json()}},
        logging_level="warning",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": plan.port})
    deployment = Segmentation.options(num_replicas=plan.workers)  # type: ignore[attr-defined]
    serve.run(deployment.bind(), route_prefix="/")
    threading.Event().wait()
