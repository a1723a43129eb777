"""This service on Ray Serve: one replica at the port that is the argument."""

import sys
import threading

import ray
from ray import serve

from app.cluster.serve import Service

if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    one = Service.options(num_replicas=1, autoscaling_config=None)  # type: ignore[attr-defined]
    serve.run(one.bind())
    threading.Event().wait()
