"""Ray: batches on the actors of a cluster, and the service as a deployment of Ray Serve."""

from app.cluster.actors import cluster, map_on_actors

__all__ = ["cluster", "map_on_actors"]
