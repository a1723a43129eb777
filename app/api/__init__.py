"""HTTP API: routes, schemas and error responses; the only package with status codes."""
