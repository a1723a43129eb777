"""Ray: batches on the actors of a cluster, and the service as a deployment of Ray Serve."""
