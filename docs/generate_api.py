"""Write docs/api.md, the API reference, from the service's OpenAPI document.

Run `make docs` after a change of a route, a model or a docstring in app/api.
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.api.openapi import PROBLEM_JSON, REASONS
from app.main import create_app
from app.settings import load_settings

TARGET = Path(__file__).with_name("api.md")
SERVER = "http://localhost:8000"
INTRODUCTION = f"""\
# API reference

Generated from the OpenAPI document by `make docs`; do not edit. A running service serves the same
document at `/openapi.json` and as a page at `/docs`.

- Tokens are sent as `Authorization: Bearer TOKEN`. An operation marked *admin token* needs the
  admin token. One marked *API token* needs an API token or the admin token where
  `SEGCAL_API_TOKENS` is set. One marked *metrics token* needs that token or the admin token where
  `SEGCAL_METRICS_TOKEN` is set, else it is as one marked *API token*.
- Every answer of 400 and above is `{PROBLEM_JSON}` (RFC 9457), a [Problem](#problem):
  `type`, `title`, `status` and `detail`, and `errors` for 422. Each operation lists its own errors.
  400, 405, 429, 500 and 503 can come from all of them. [The table](#errors) has the reasons.
- Requests may have `X-Request-Id` and `traceparent` ([observability.md](observability.md#log)).
  Every response has `X-Request-Id`.
- Words in capitals in the commands stand for values, `$TOKEN` and `token` for a token. The Python
  lines need one of these, from `.venv/bin/python`:

```python
from pathlib import Path

import httpx2

from app.client import Client  # docs/python-client.md

token = "TOKEN"
client = Client("{SERVER}", token)
http = httpx2.Client(base_url="{SERVER}", headers={{"Authorization": f"Bearer {{token}}"}})
```
"""
BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "maxLength": "length <=",
}
# Calls of the Python client by operation; the other operations are shown with httpx2.
CLIENT_CALLS = {
    "segment": 'client.segment("examples/street.jpg", min_confidence=0.8)',
    "get_result_arrays": 'client.result("RESULT", "data.npz")',
    "get_result_image": 'client.result("RESULT", "mask.png")',
    "list_calibrators": "client.calibrators()",
    "get_calibrator": 'client.calibrator("CALIBRATOR")',
    "delete_calibrator": 'client.delete("CALIBRATOR")',
    "get_report": 'client.report("CALIBRATOR")',
    "download_calibrator": 'client.archive("CALIBRATOR")',
    "activate_calibrator": 'client.activate("CALIBRATOR", "reason")',
    "list_jobs": "client.jobs()",
    "calibrate": 'client.calibrate({"logits": Path("val.npz")})',
    "get_job": 'client.job("JOB")',
    "cancel_job": 'client.cancel("JOB")',
    "watch_job": 'list(client.events("JOB"))',
    "retry_job": 'client.retry("JOB")',
    "list_models": "client.models()",
    "get_model": 'client.model("MODEL")',
}
LABEL_CONFIG = (
    "<View><Image name='image' value='$image'/><BrushLabels name='tag' toName='image'>"
    "<Label value='CLASS'/></BrushLabels></View>"
)
INFER = {
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["BASE64"]}],
    "outputs": [{"name": "mask"}],
}
PREDICT = {
    "tasks": [{"id": 1, "data": {"image": "https://images.example.org/1.png"}}],
    "label_config": LABEL_CONFIG,
}
SETUP = {"project": "1", "label_config": LABEL_CONFIG}
WEBHOOK = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}
JSON_BODIES: Mapping[str, object] = {
    "activate_calibrator": {"reason": "reason"},
    "infer": INFER,
    "infer_version": INFER,
    "labelstudio_setup": SETUP,
    "labelstudio_setup_of_model": SETUP,
    "labelstudio_predict": PREDICT,
    "labelstudio_predict_of_model": PREDICT,
    "labelstudio_webhook": WEBHOOK,
    "labelstudio_webhook_of_model": WEBHOOK,
    "cvat_invoke_function": {"image": "BASE64"},
}
FILES = (".png", ".npz", ".svg")
SECURITY = {
    "api_token": "API token",
    "metrics_token": "metrics token",
    "admin_token": "admin token",
}

EVERYWHERE = ("X-Request-Id",)  # the introduction names it

Schema = Mapping[str, Any]


def build_openapi() -> dict[str, Any]:
    """Build the OpenAPI document of an application with an empty model folder."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "models" / "model").mkdir(parents=True)
        settings = load_settings(
            models_dir=root / "models", artifacts_dir=root, admin_token="x" * 8
        )
        return create_app(settings).openapi()


def render(document: Schema) -> str:
    """Render an OpenAPI document as Markdown: operations by tag, then schemas and errors."""
    schemas: Schema = document["components"]["schemas"]
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines = operation_lines(method.upper(), path, operation, schemas)
            by_tag.setdefault(operation["tags"][0], []).append("\n".join(lines))
    parts = [INTRODUCTION]
    for tag, operations in by_tag.items():
        parts += [f"## Operations: {tag}\n", *operations]
    parts += ["## Schemas\n", *("\n".join(schema_lines(name, schemas)) for name in schemas)]
    parts += ["## Errors\n", *error_lines()]
    return "\n".join(parts)


def error_lines() -> Iterator[str]:
    """Render the table of errors."""
    yield "| status | reason |"
    yield "|---|---|"
    yield from (f"| {status} | {reason} |" for status, reason in sorted(REASONS.items()))
    yield ""


def operation_lines(method: str, path: str, operation: Schema, schemas: Schema) -> Iterator[str]:
    """Render one operation."""
    yield f"### `{method} {path}`\n"
    yield f"Operation `{operation['operationId']}`.\n"
    yield f"{operation['description']}\n"
    needed = [SECURITY[name] for entry in operation.get("security", ()) for name in entry]
    if needed:
        yield f"Needs: *{', '.join(needed)}*.\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | default | description |"
        yield "|---|---|---|---|---|"
        for parameter in parameters:
            schema = resolved(parameter["schema"], schemas)
            default = "required" if parameter["required"] else default_of(schema)
            about = parameter.get("description", "")
            name = parameter["name"]
            yield f"| `{name}` | {parameter['in']} | {type_of(schema)} | {default} | {about} |"
        yield ""
    yield from body_lines(operation.get("requestBody", {}).get("content", {}), schemas)
    yield from response_lines(operation["responses"])
    yield f"```sh\n{curl_line(method, path, operation)}\n```\n"
    yield f"```python\n{python_line(method, path, operation)}\n```\n"


def response_lines(responses: Schema) -> Iterator[str]:
    """Render the success of an operation with its headers, and its own errors."""
    statuses = [status for status in sorted(responses) if status.isdigit()]
    for status in (status for status in statuses if status < "400"):
        response = responses[status]
        yield f"Response {status}: {media_types(response.get('content', {}))}\n"
        headers = response.get("headers", {}).items()
        own = [f"- `{n}`: {h['description']}" for n, h in headers if n not in EVERYWHERE]
        if own:
            yield "\n".join(["Headers:\n", *own, ""])
    if errors := [status for status in statuses if status >= "400"]:
        yield f"[Errors](#errors): {', '.join(errors)}.\n"


def body_lines(content: Schema, schemas: Schema) -> Iterator[str]:
    """Render the media types of a request body and their fields."""
    for media_type, body in content.items():
        yield f"Body, `{media_type}`: {type_of(body['schema'])}\n"
        schema = resolved(body["schema"], schemas)
        if "properties" in schema:
            yield from field_table(schema)


def field_table(schema: Schema) -> Iterator[str]:
    """Render the properties of an object as a table."""
    required, fields = schema.get("required", ()), schema["properties"]
    described = any("description" in entry for entry in fields.values())
    yield "| field | type | default |" + " description |" * described
    yield "|---|---|---|" + "---|" * described
    for name, entry in fields.items():
        default = "required" if name in required else default_of(entry)
        about = f" {entry.get('description', '')} |" * described
        yield f"| `{name}` | {type_of(entry)} | {default} |{about}"
    yield ""


def schema_lines(name: str, schemas: Schema) -> Iterator[str]:
    """Render one named schema."""
    schema = schemas[name]
    yield f"### {name}\n"
    yield f"{schema.get('description', '')}\n"
    if "properties" in schema:
        yield from field_table(schema)
    else:
        yield f"Type: {type_of(schema)}\n"


def resolved(schema: Schema, schemas: Schema) -> Schema:
    """Return a schema with its reference, or the one alternative that is not null, followed."""
    options = [entry for entry in schema.get("anyOf", ()) if entry.get("type") != "null"]
    if len(options) == 1:
        return {**resolved(options[0], schemas), **schema}
    if "$ref" in schema:
        extra = {key: value for key, value in schema.items() if key != "$ref"}
        return {**schemas[schema["$ref"].rpartition("/")[2]], **extra}
    return schema


def type_of(schema: Schema) -> str:
    """Return a schema's type with its values or bounds, as Markdown."""
    kind = schema.get("type", "any")
    bounds = [f"{sign} {number(schema[key])}" for key, sign in BOUNDS.items() if key in schema]
    shown = ", ".join([kind, *bounds])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        shown = f"[{name}](#{name.lower()})"
    elif "anyOf" in schema:
        shown = " or ".join(type_of(entry) for entry in schema["anyOf"])
    elif values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        shown = " or ".join(f"`{value}`" for value in values)
    elif "prefixItems" in schema:
        shown = f"array of {len(schema['prefixItems'])} {type_of(schema['prefixItems'][0])}"
    elif kind == "array":
        shown = f"array of {type_of(schema['items'])}"
    elif schema.get("format") == "binary":
        shown = "file"
    return shown


def default_of(schema: Schema) -> str:
    """Return a schema's default as Markdown."""
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "optional"


def number(value: float) -> str:
    """Return a bound without the fraction .0 that pydantic gives to integers."""
    return str(int(value)) if float(value).is_integer() else str(value)


def media_types(content: Schema) -> str:
    """Return the media types of a response, with the schemas of JSON ones."""
    if not content:
        return "no body"
    return ", ".join(
        f"`{kind}` {type_of(body['schema'])}" if "$ref" in body.get("schema", {}) else f"`{kind}`"
        for kind, body in content.items()
    )


def curl_line(method: str, path: str, operation: Schema) -> str:
    """Return a curl command for an operation; upper-case words stand for values."""
    fields, body = multipart_fields(operation), JSON_BODIES.get(operation["operationId"])
    parts = ["curl"]
    if body is not None:
        # Within '…' the shell would end the quotes at those of the labelling configuration.
        parts.append(f"--json {shlex.quote(json.dumps(body))}")
    elif takes_raw_image(operation):
        parts.append('--data-binary @examples/street.jpg -H "Content-Type: image/jpeg"')
    elif method != "GET" and not fields:
        parts += ["-X", method]
    if any("admin_token" in entry for entry in operation.get("security", ())):
        parts.append('-H "Authorization: Bearer $TOKEN"')
    parts += [f'-H "{name}: {value}"' for name, value in header_values(operation).items()]
    if path.endswith("/events"):
        parts.append("--no-buffer")
    if path.endswith(FILES):
        parts.append("--remote-name")
    if "Content-Disposition" in operation["responses"].get("200", {}).get("headers", {}):
        parts.append("--remote-header-name --remote-name")
    return " ".join([*parts, *fields, SERVER + filled(path, operation)])


def python_line(method: str, path: str, operation: Schema) -> str:
    """Return a Python expression for an operation, of `client` or of `http`."""
    identity = operation["operationId"]
    if identity in CLIENT_CALLS:
        return CLIENT_CALLS[identity]
    arguments = [json.dumps(filled(path, operation))]
    headers = header_values(operation)
    if identity in JSON_BODIES:
        arguments.append(f"json={JSON_BODIES[identity]!r}")
    elif takes_raw_image(operation):
        arguments.append('content=Path("examples/street.jpg").read_bytes()')
        headers = {"Content-Type": "image/jpeg", **headers}
    if headers:
        arguments.append(f"headers={headers!r}")
    return f"http.{method.lower()}({', '.join(arguments)})"


def filled(path: str, operation: Schema) -> str:
    """Return a path with a word in capitals, or the first value, for each parameter."""
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            name = parameter["name"]
            values = parameter["schema"].get("enum", [name.removesuffix("_id").upper()])
            path = path.replace(f"{{{name}}}", values[0])
    return path


def header_values(operation: Schema) -> dict[str, str]:
    """Return the required headers of a request, all of which are names of models."""
    return {
        parameter["name"]: "MODEL"
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header" and parameter["required"]
    }


def takes_raw_image(operation: Schema) -> bool:
    """Return whether the body is an image and can't be a form."""
    content = operation.get("requestBody", {}).get("content", {})
    return "image/*" in content and "multipart/form-data" not in content


def multipart_fields(operation: Schema) -> list[str]:
    """Return curl's options for the first file fields of a multipart body."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("multipart/form-data", {}).get("schema", {})
    fields = [
        name
        for name, entry in schema.get("properties", {}).items()
        if entry.get("format") == "binary"
    ]
    examples = {"image": "examples/street.jpg", "logits": "val.npz"}
    return [f"-F {name}=@{examples[name]}" for name in fields if name in examples]


def main() -> None:
    """Write the reference."""
    TARGET.write_text(render(build_openapi()), "utf-8")
    sys.stdout.write(f"wrote {TARGET}\n")


if __name__ == "__main__":
    main()
