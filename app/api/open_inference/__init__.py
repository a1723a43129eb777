"""The Open Inference Protocol v2 as a server: routes, inference and gRPC."""
