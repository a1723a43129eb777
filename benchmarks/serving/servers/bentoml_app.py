"""BentoML: a service class with one endpoint that takes an image.

`bentoml serve benchmarks.serving.servers.bentoml_app:Segmentation --port N`
"""

import bentoml
from PIL import Image

from benchmarks.serving.servers import Pipeline, read_plan

PLAN = read_plan()


@bentoml.service(workers=PLAN.workers, traffic={"timeout": 120})
class Segmentation:
    """Serve one endpoint; BentoML makes an instance in every worker process."""

    def __init__(self) -> None:
        self.pipeline = Pipeline(PLAN)

    @bentoml.api(route="/segment")
    def segment(self, image: Image.Image) -> dict[str, str]:
        """Segment one image."""
        return self.pipeline.segment(image.convert("RGB"))
