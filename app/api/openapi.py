"""Parts of the OpenAPI document that routes share: binary bodies, headers and the one Problem."""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI

from app.schemas.service import Problem

PROBLEM_JSON = "application/problem+json"
BINARY = {"type": "string", "format": "binary"}
FILE = {"schema": BINARY}
REFERENCE = {"$ref": "#/components/schemas/Problem"}
REASONS = {
    400: "the image, archive or form cannot be decoded",
    401: "the token is missing or wrong",
    404: "unknown path, model, calibrator, job or result",
    405: "the path takes other methods, named in `Allow`",
    406: "no media type of `Accept` is offered",
    408: "the body arrives too slowly",
    409: "conflict: no certified threshold, version active, job ended, damaged version",
    413: "too many bytes or pixels",
    415: "wrong media type",
    422: "wrong argument, shape, label value or class count; logits with NaN",
    429: "queue full; with `Retry-After`",
    500: "internal error; the log has the details",
    503: "starting or shutting down, or the active calibrator is damaged; with `Retry-After`",
    507: "disk full",
}
# Errors of operations by what they do; `install` adds 401 where a token is needed.
UPLOAD = (400, 408, 413, 415, 422, 429, 503)
SEGMENTATION = (404, 409, *UPLOAD, 507)
SEGMENTATION_HEADERS = ("X-Model", "X-Calibrator", "X-Guarantee")

HEADERS = {
    "Allow": "The methods of the path.",
    "Content-Disposition": "Name for the file.",
    "Inference-Header-Content-Length": "Bytes of the JSON where the bytes of tensors follow it.",
    "Location": "Path of the job.",
    "Retry-After": "Seconds after which to send the request again.",
    "Server-Timing": "Milliseconds of each stage and in all.",
    "WWW-Authenticate": "`Bearer`",
    "X-Calibrator": "Id of the calibrator version, or `none`.",
    "X-Guarantee": (
        "With `max_error`: `applies`, `does-not-apply` or `not-measured`, as "
        "`calibration.guarantee` in JSON."
    ),
    "X-Model": "Name of the model.",
    "X-Request-Id": "Id of the request, that of the request's own header where it has one.",
    "X-Result-Id": "Id for `/results/{result_id}`, which are kept for a limited time.",
}
# Of parameters that routes declare without a description.
PARAMETERS = {
    "calibrator": "Id of a calibrator version; in a query also `active` or `none`.",
    "image": "Kind of the image.",
    "job": "Id of a calibration job.",
    "model": "Name of a model; in a query by default that of `POST /segment`.",
    "name": "Name of a model.",
    "result_id": "Id of a response, from `X-Result-Id` or `id`.",
    "version": "Id of a calibrator version, or `uncalibrated`.",
}
ERROR_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}

Answers = dict[int | str, dict[str, Any]]


def problem_answer(description: str, headers: Iterable[str] = ()) -> dict[str, Any]:
    """Return the entry of an error response."""
    return {
        "description": description,
        "headers": header_entries(headers),
        "content": {PROBLEM_JSON: {"schema": REFERENCE}},
    }


def header_entries(names: Iterable[str]) -> dict[str, Any]:
    """Return the entries of response headers, `X-Request-Id` first, which every response has."""
    return {
        name: {"description": HEADERS[name], "schema": {"type": "string"}}
        for name in ("X-Request-Id", *names)
    }


def error_answer(status: int) -> dict[str, Any]:
    """Return the entry of one error status."""
    headers = [ERROR_HEADERS[status]] if status in ERROR_HEADERS else []
    return problem_answer(REASONS[status], headers)


def answers(
    *errors: int, status: int = 200, files: Iterable[str] = (), headers: Iterable[str] = ()
) -> Answers:
    """Return the responses of an operation, as FastAPI's `responses`.

    `errors` are the statuses of its own errors, `files` the media types of binary bodies and
    `headers` the names of headers of a success.
    """
    success: dict[str, Any] = {"headers": header_entries(headers)}
    if files:
        success["content"] = dict.fromkeys(files, FILE)
    return {status: success, **{error: error_answer(error) for error in sorted(errors)}}


# Of every operation; an error of all of them, such as 500, is in these ranges.
RANGES: Answers = {
    "4XX": problem_answer("Invalid or rejected request"),
    "5XX": problem_answer("Server error"),
}


def install(app: FastAPI) -> None:
    """Complete FastAPI's document: the schema Problem, descriptions, 401 with each token."""
    build: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
            document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            for operations in document["paths"].values():
                for operation in operations.values():
                    for parameter in operation.get("parameters", ()):
                        description = PARAMETERS.get(parameter["name"], "")
                        parameter.setdefault("description", description)
                    if operation.get("security"):
                        operation["responses"]["401"] = error_answer(401)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
