"""Write docs/api.md, the API reference, from the service's OpenAPI document.

Run `make docs` after a change of a route, a model or a docstring in app/api.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import load_settings

TARGET = Path(__file__).with_name("api.md")
SERVER = "http://localhost:8000"
PROBLEM = "application/problem+json"
INTRODUCTION = f"""\
# API reference

Generated from the OpenAPI document by `make docs`; do not edit. A running service serves the same
document at `/openapi.json` and as a page at `/docs`.

- Tokens are sent as `Authorization: Bearer TOKEN`. An operation marked *admin token* needs the
  admin token. One marked *API token* needs an API token or the admin token where
  `SEGCAL_API_TOKENS` is set. One marked *metrics token* needs that token or the admin token where
  `SEGCAL_METRICS_TOKEN` is set, else it is as one marked *API token*.
- Every answer of 400 and above is `{PROBLEM}` (RFC 9457) with `type`, `title`,
  `status` and `detail`, and with `errors` for 422. Its status codes are listed
  [at the end](#errors).
"""
ERRORS = """\
## Errors

| status | reason |
|---|---|
| 400 | the image, archive or form cannot be decoded |
| 401 | the token is missing or wrong |
| 404 | unknown path, model, calibrator, job or result |
| 405 | the path takes other methods, named in `Allow` |
| 406 | no media type of `Accept` is offered |
| 408 | the body arrives too slowly |
| 409 | conflict: no certified threshold, version active, job ended, damaged version |
| 413 | too many bytes or pixels |
| 415 | wrong media type |
| 422 | wrong argument, shape, label value or class count; logits with NaN |
| 429 | queue full; with `Retry-After` |
| 503 | starting or shutting down, or the active calibrator is damaged; with `Retry-After` |
| 507 | disk full |
| 500 | internal error; the log has the details |
"""
BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "maxLength": "length <=",
}
# Media types of responses whose content the document leaves out, by the end of their path.
MEDIA = {
    ".png": "image/png",
    ".npz": "application/x-npz",
    ".svg": "image/svg+xml",
    "/archive": "application/zip",
    "/metrics": "text/plain",
}
FILES = (".png", ".npz", ".svg")
SECURITY = {
    "api_token": "API token",
    "metrics_token": "metrics token",
    "admin_token": "admin token",
}

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
    parts += ["## Schemas\n", *("\n".join(schema_lines(name, schemas)) for name in schemas), ERRORS]
    return "\n".join(parts)


def operation_lines(method: str, path: str, operation: Schema, schemas: Schema) -> Iterator[str]:
    """Render one operation."""
    yield f"### `{method} {path}`\n"
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
    yield "Responses:\n"
    for status, response in operation["responses"].items():
        if status.isdigit():
            yield f"- {status}: {media_types(response.get('content', {}), path)}"
    yield f"\n```sh\n{curl_line(method, path, operation)}\n```\n"


def body_lines(content: Schema, schemas: Schema) -> Iterator[str]:
    """Render the media types of a request body and their fields."""
    for media_type, body in content.items():
        yield f"Body, `{media_type}`: {type_of(body['schema'])}\n"
        schema = resolved(body["schema"], schemas)
        if "properties" in schema:
            yield from field_table(schema)


def field_table(schema: Schema) -> Iterator[str]:
    """Render the properties of an object as a table."""
    required = schema.get("required", ())
    yield "| field | type | default |"
    yield "|---|---|---|"
    for name, entry in schema["properties"].items():
        default = "required" if name in required else default_of(entry)
        yield f"| `{name}` | {type_of(entry)} | {default} |"
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


def media_types(content: Schema, path: str) -> str:
    """Return the media types of a response, with the schemas of JSON ones."""
    if not content:
        return next((f"`{kind}`" for end, kind in MEDIA.items() if path.endswith(end)), "no body")
    return ", ".join(
        f"`{kind}` {type_of(body['schema'])}" if "$ref" in body.get("schema", {}) else f"`{kind}`"
        for kind, body in content.items()
    )


def curl_line(method: str, path: str, operation: Schema) -> str:
    """Return a curl command for an operation; upper-case words stand for values."""
    parts = ["curl"]
    if method != "GET":
        parts += [] if method == "POST" and multipart_fields(operation) else ["-X", method]
    if any("admin_token" in entry for entry in operation.get("security", ())):
        parts.append('-H "Authorization: Bearer $TOKEN"')
    if path.endswith("/events"):
        parts.append("--no-buffer")
    if path.endswith(FILES):
        parts.append("--remote-name")
    parts += multipart_fields(operation)
    url = SERVER + path
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            name = parameter["name"]
            values = parameter["schema"].get("enum", [name.removesuffix("_id").upper()])
            url = url.replace(f"{{{name}}}", values[0])
    return " ".join([*parts, url])


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
