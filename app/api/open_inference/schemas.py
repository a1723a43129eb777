"""Schemas of the Open Inference Protocol in the OpenAPI document."""

from pydantic import BaseModel

BINARY = {"schema": {"type": "string", "format": "binary"}}
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
INFER_BODY = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer"},
            "description": "Bytes of the JSON where the bytes of tensors follow it.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": TENSOR},
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "parameters": {"type": "object"},
                                },
                            },
                        },
                    },
                }
            },
            "application/octet-stream": BINARY,
        },
    },
}
INFER_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/octet-stream": BINARY}}
}


class Server(BaseModel):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Liveness of the server."""

    live: bool


class Ready(BaseModel):
    """Readiness of the server."""

    ready: bool


class ModelReady(BaseModel):
    """Readiness of a model."""

    name: str
    ready: bool
