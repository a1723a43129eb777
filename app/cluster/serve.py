"""The service as a deployment of Ray Serve: `serve run app.cluster.serve:app`.

Each replica runs the application of `app.main` in its own process, with settings from the
environment. Replicas share the artefacts folder, so that all of them serve the active version.
"""

import os

from app.errors import SetupError
from app.main import create_app
from app.settings import load_settings

try:
    from ray import serve
except ImportError as error:
    raise SetupError(
        f"expected the extra packages of `pip install segcal[ray]`, got: {error}"
    ) from error


def build_app():  # type: ignore[no-untyped-def]  # noqa: ANN201 - Ray is without types here
    """Build a replica's application; its models have one thread unless SEGCAL_THREADS is set."""
    return create_app(load_settings(threads=os.environ.get("SEGCAL_THREADS") or 1))


# The service itself limits its queue and answers 429, so Ray's limit is above it.
@serve.deployment(
    name="segcal",
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 1},
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 2},
)
@serve.ingress(build_app)
class Service:
    """A replica of the service."""


app = Service.bind()  # type: ignore[attr-defined]
