"""The OpenAPI document: names of operations, one Problem, and media types that come as declared."""

import json
import re

import pytest

from tests.factories.service import post, publish_temperature, thirds

BINARY = {"type": "string", "format": "binary"}
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
# The binary bodies of successful responses.
FILES = {
    "segment": {"image/png", "application/x-npz"},
    "get_result_image": {"image/png"},
    "get_result_arrays": {"application/x-npz"},
    "get_reliability_diagram": {"image/svg+xml"},
    "download_calibrator": {"application/zip"},
    "export_model": {"application/octet-stream"},
    "infer": {"application/octet-stream"},
    "infer_version": {"application/octet-stream"},
}


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def operations(document):
    """Return (path, method, operation) of each operation."""
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def success(operation):
    """Return the entry of the successful response."""
    (status,) = [status for status in operation["responses"] if status.startswith("2")]
    return operation["responses"][status]


def test_operations_have_readable_unique_names(document):
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch("[a-z_]+", name)] == []
    assert {"segment", "list_calibrators", "activate_calibrator", "calibrate"} <= set(names)


def test_no_name_of_an_operation_is_made_of_its_path(document):
    for path, method, operation in operations(document):
        automatic = re.sub(r"\W", "_", path) + "_" + method  # as FastAPI ends its own names
        assert not operation["operationId"].endswith(automatic)


def test_all_errors_are_one_schema(document):
    for path, method, operation in operations(document):
        errors = {s: r for s, r in operation["responses"].items() if s[0] in "45"}
        assert {"4XX", "5XX"} <= errors.keys()
        assert "401" in errors or not operation.get("security")
        for status, response in errors.items():
            assert response["content"] == PROBLEM, (method, path, status)
    assert json.dumps(document).count('"title": "Problem"') == 1


def test_binary_bodies_are_declared(document):
    found = {}
    for _, _, operation in operations(document):
        content = success(operation).get("content", {})
        text = ("application/json", "text/plain", "text/event-stream")
        if files := {kind: body for kind, body in content.items() if kind not in text}:
            assert all(body["schema"] == BINARY for body in files.values())
            found[operation["operationId"]] = set(files)
    assert found == FILES


def test_responses_have_the_media_types_and_headers_that_are_declared(
    make_client, document, models_dir, artifacts_dir
):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    client = make_client()
    segmented = post(client, thirds())
    result = segmented.headers["x-result-id"]
    responses = {
        "/segment": segmented,
        "/results/{result_id}/data.npz": client.get(f"/results/{result}/data.npz"),
        "/results/{result_id}/{image}.png": client.get(f"/results/{result}/overlay.png"),
        "/calibrators/{calibrator}/archive": client.get(f"/calibrators/{version}/archive"),
        "/metrics": client.get("/metrics"),
        "/healthz": client.get("/healthz"),
    }
    for path, response in responses.items():
        (operation,) = document["paths"][path].values()
        kind = response.headers["content-type"].partition(";")[0]
        assert response.status_code == 200
        assert kind in success(operation)["content"], path
        declared = set(success(operation)["headers"]) - {"X-Guarantee"}  # only with max_error
        assert [name for name in declared if name not in response.headers] == [], path


def test_every_parameter_and_form_field_is_described(document):
    for path, method, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (method, path, parameter["name"])
    content = document["paths"]["/calibrate"]["post"]["requestBody"]["content"]
    fields = content["multipart/form-data"]["schema"]["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []
