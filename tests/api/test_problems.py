"""Every failure is an RFC 9457 problem, and the next valid request is served."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from onnx import TensorProto, helper
from PIL import Image

from app import errors
from app.api.problem_details import status_of
from app.main import create_app
from tests.conftest import MakeClient
from tests.factories.models import write_card
from tests.factories.service import (
    RED,
    assert_problem,
    assert_serves,
    encoded,
    post,
    solid,
    thirds,
    wait_until_ready,
)

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def bomb() -> bytes:
    """Encode a PNG of a few hundred bytes with a header of 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(30000)))
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    """Encode an animation of three frames."""
    frames = [Image.fromarray(solid((0, 0, shade))) for shade in (10, 100, 200)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def in_float() -> bytes:
    """Encode a TIFF of floating-point pixels, which have no defined range."""
    return encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")


BAD_IMAGES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "zero bytes": (lambda: b"", 400, "0 bytes"),
    "text": (lambda: b"this is no image, whatever its name says\n", 400, "JPEG"),
    "html": (lambda: b"<html><body>404</body></html>", 400, "JPEG"),
    "truncated JPEG": (lambda: encoded(NOISE, "JPEG")[:1000], 400, "whole image"),
    "truncated PNG": (lambda: encoded(NOISE)[:1000], 400, "whole image"),
    "truncated WebP": (lambda: encoded(NOISE, "WEBP", lossless=True)[:1000], 400, "image"),
    "truncated BMP": (lambda: encoded(NOISE, "BMP")[:1000], 400, "whole image"),
    "truncated TIFF": (lambda: encoded(NOISE, "TIFF")[:1000], 400, "image"),
    "only a header": (lambda: encoded(NOISE)[:30], 400, "image"),
    "animated WebP": (lambda: animated("WEBP"), 400, "3 frames"),
    "animated PNG": (lambda: animated("PNG"), 400, "3 frames"),
    "many pages": (lambda: animated("TIFF"), 400, "still image"),
    "GIF": (lambda: encoded(solid(RED), "GIF"), 400, "JPEG"),
    "floating point": (in_float, 400, "floating-point"),
    "bomb": (bomb, 413, "30000x30000"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("way", ["raw", "multipart"])
def test_invalid_image_is_a_problem_and_service_continues(client, name, way):
    make, status, words = BAD_IMAGES[name]
    if way == "raw":
        response = post(client, make())
    else:
        response = client.post("/segment", files={"image": ("street.jpg", make(), "image/jpeg")})

    assert_problem(response, status, words)
    assert_serves(client)


def cmyk() -> bytes:
    return encoded(Image.fromarray(solid(RED, 16, 16)).convert("CMYK"), "JPEG")


def sixteen_bit_grey() -> bytes:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    return encoded(Image.fromarray(ramp))


def palette() -> bytes:
    return encoded(Image.fromarray(solid(RED, 16, 16)).quantize(4))


def with_alpha() -> bytes:
    opaque = Image.fromarray(solid(RED, 16, 16))
    opaque.putalpha(0)
    return encoded(opaque)


@pytest.mark.parametrize("make", [cmyk, palette, with_alpha])
def test_unusual_red_image_is_still_red(client, make):
    classes = post(client, make()).json()["classes"]

    assert [entry["id"] for entry in classes] == [0]
    assert classes[0]["pixels"] == 256


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_image_of_any_kind_is_served(client, mode):
    grey = Image.fromarray(np.full((8, 8), 255, np.uint8)).convert(mode)
    body = post(client, encoded(grey), calibrator="none").json()

    assert body["mean_confidence"] == pytest.approx(1 / 3)  # all channels of white are equal


def test_sixteen_bit_grey_is_scaled_not_clipped(client):
    response = post(client, sixteen_bit_grey(), output="overlay")
    image = np.asarray(Image.open(io.BytesIO(response.content)))

    assert response.status_code == 200
    # Half of 0..255, in even steps: a clipped ramp would be white but for its first pixel.
    assert image[..., 0].ravel().tolist() == [value // 2 for value in range(256)]


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "video/mp4", "x", None])
def test_wrong_content_type_is_rejected(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    response = client.post("/segment", content=encoded(thirds()), headers=headers)

    assert_problem(response, 415, "image/*", kind or "no content type")
    assert_serves(client)


def test_form_without_the_field_is_rejected(client):
    response = client.post("/segment", files={"photo": ("a.png", encoded(thirds()))})

    assert_problem(response, 422, "image", "photo")
    assert_serves(client)


def test_form_whose_field_is_no_file_is_rejected(client):
    form = {"image": (None, "street.png")}

    assert_problem(client.post("/segment", files=form), 422, "file", "image")
    assert_serves(client)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary in here"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: x\r\n\r\n\r\n--x--",
        ),
        ("multipart/form-data; boundary=x", b""),
    ],
)
def test_malformed_form_is_rejected(client, kind, body):
    response = client.post("/segment", content=body, headers={"Content-Type": kind})

    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert_serves(client)


def test_form_of_two_images_is_rejected(client):
    files = [("image", ("a.png", encoded(thirds()))), ("image", ("b.png", encoded(thirds())))]
    response = client.post("/segment", files=files)

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/nothing", "/segment/more", "/models/tiny/more", "/.env"])
def test_unknown_path_is_a_problem(client, path):
    assert_problem(client.get(path), 404, path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/segment", "POST"), ("HEAD", "/segment", "POST"),
        ("POST", "/models", "GET, HEAD"), ("BREW", "/readyz", "GET, HEAD"),
        ("PUT", "/calibrate/x", "GET, DELETE, HEAD"), ("DELETE", "/calibrate", "GET, POST, HEAD"),
        ("POST", "/static/page.js", "GET, HEAD"),
    ],
)  # fmt: skip
def test_wrong_method_is_a_problem_that_names_the_allowed_ones(client, method, path, allowed):
    response = client.request(method, path)

    if method != "HEAD":
        assert_problem(response, 405, allowed, method)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/models", "/models/none", "/nothing"])
def test_head_is_get_without_the_body(client, path):
    whole, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (whole.status_code, b"")
    same = ("content-type", "content-length")
    assert [head.headers[name] for name in same] == [whole.headers[name] for name in same]


def test_unknown_methods_and_paths_create_no_metric_series(make_client):
    client = make_client()
    for method in ("BREW", "WHEN", "GET", "HEAD"):
        client.request(method, "/healthz")
    client.get("/a/path/of/a/client")
    client.get("/calibrators/an-id-of-a-client")
    counted = client.get("/metrics").text

    for method in ("GET", "HEAD"):
        assert f'method="{method}",route="/healthz",status="200"}} 1.0' in counted
    assert 'method="other",route="/healthz",status="405"} 2.0' in counted
    assert "BREW" not in counted
    assert "of/a/client" not in counted
    assert "an-id-of-a-client" not in counted


def test_unknown_argument_is_rejected(client):
    assert_problem(post(client, thirds(), min_confidense=0.9), 422, "min_confidense")


def test_option_in_the_form_is_rejected(client):
    image = {"image": ("street.png", encoded(thirds()), "image/png")}
    response = client.post("/segment", files=image, data={"min_confidence": "0.9"})

    assert_problem(response, 422, "in the query", "min_confidence")


def crashing(app: FastAPI) -> FastAPI:
    """Add a route that raises an unexpected error, and one that raises a `ModelError`."""

    def crash() -> None:
        raise RuntimeError("the secret is 42")

    def damaged() -> None:
        raise errors.ModelError("expected a model, got none")

    app.add_api_route("/crash", crash)
    app.add_api_route("/damaged", damaged)
    return app


def test_internal_error_is_logged_but_not_disclosed(make_settings, caplog):
    app = crashing(create_app(make_settings()))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        response = client.get("/crash")

        assert_problem(response, 500)
        assert "secret" not in response.text
        assert "the secret is 42" in caplog.text
        assert_problem(client.get("/damaged"), 500, "expected a model")
        assert_serves(client)


def test_model_failure_is_a_problem_and_service_continues(make_client: MakeClient, models_dir):
    # Warms up at 256 x 320, and reshapes to just that: any other size fails inside the runtime.
    (models_dir / "rigid").mkdir()
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 3, 256, 320])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "shape"], ["logits"])],
        "rigid",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 256, 320])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, models_dir / "rigid" / "model.onnx")
    write_card(models_dir / "rigid", std=[0.1, 0.1, 0.1])  # not in 0..1, as of probabilities
    client = make_client(default_model="tiny")

    assert post(client, solid(RED, 256, 320), model="rigid").status_code == 200
    assert_problem(post(client, thirds(), model="rigid"), 500)
    assert_serves(client)


def every_error(root: type[errors.SegcalError]) -> list[type[errors.SegcalError]]:
    return [root, *(deeper for kind in root.__subclasses__() for deeper in every_error(kind))]


def test_every_error_class_has_a_status():
    assert {kind.__name__: status_of(kind("x")) for kind in every_error(errors.SegcalError)} == {
        "SegcalError": 500,
        "InputError": 400,
        "UndecodableError": 400,
        "TooLargeError": 413,
        "MediaTypeError": 415,
        "ArgumentError": 422,
        "NotFoundError": 404,
        "ConflictError": 409,
        "TooSlowError": 408,
        "UnauthorizedError": 401,
        "BusyError": 429,
        "UnavailableError": 503,
        "StorageError": 507,
        "SetupError": 500,
        "SettingsError": 500,
        "ModelError": 500,
        "UpstreamError": 503,
        "ArtifactError": 409,
        "ActiveCalibratorError": 503,
    }


def test_openapi_names_the_paths(client):
    document = client.get("/openapi.json").json()

    assert document["openapi"].startswith("3.")
    assert "HTTPValidationError" not in document["components"]["schemas"]  # FastAPI's own form
    for operations in document["paths"].values():
        for operation in operations.values():
            assert set(operation["responses"]["4XX"]["content"]) == {"application/problem+json"}
    assert {
        "/segment", "/models", "/models/{model}", "/healthz", "/readyz",
        "/results/{result_id}/data.npz", "/results/{result_id}/{image}.png",
    } <= document["paths"].keys()  # fmt: skip
    body = document["paths"]["/segment"]["post"]["requestBody"]["content"]
    assert body.keys() == {"multipart/form-data", "image/*"}
    parameters = {entry["name"] for entry in document["paths"]["/segment"]["post"]["parameters"]}
    assert parameters == {
        "model", "calibrator", "min_confidence", "max_error", "tta", "include", "output",
    }  # fmt: skip


def keys_of(value: object) -> set[str]:
    """Return the keys of all objects of a JSON document."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_openapi_has_bounds_in_the_words_of_json_schema(client):
    document = client.get("/openapi.json").json()
    query = {p["name"]: p["schema"] for p in document["paths"]["/segment"]["post"]["parameters"]}

    assert keys_of(document).isdisjoint({"ge", "gt", "le", "lt"})
    assert (query["min_confidence"]["minimum"], query["min_confidence"]["maximum"]) == (0, 1)
    bounds = query["max_error"]["exclusiveMinimum"], query["max_error"]["exclusiveMaximum"]
    assert bounds == (0, 1)


def test_unparsable_form_gives_an_error_message(client):
    kind = {"Content-Type": "multipart/form-data; boundary=zzz"}
    answer = client.post("/segment", content=b"hello", headers=kind)
    assert_problem(answer, 400, "expected a well-formed request, got one that is not: ")


def test_docs_page_is_served(client):
    response = client.get("/docs")

    assert response.status_code == 200
    assert "text/html" in response.headers["content-type"]


@pytest.mark.parametrize("path", ["/", "/static/page.css", "/docs/assets/swagger-ui.css"])
@pytest.mark.parametrize(("value", "status"), [("Bearer", 400), ("bytes=99999999-", 416)])
def test_wrong_range_of_a_file_is_a_problem(client: TestClient, path, value, status):
    assert client.get(path).status_code == 200
    answer = client.get(path, headers={"Range": value})
    assert_problem(answer, status, "got one that is not")
    assert answer.headers.get_list("content-type") == ["application/problem+json"]
    assert ("content-range" in answer.headers) == (status == 416)


def test_rejected_preflight_is_a_problem(make_client: MakeClient):
    client = make_client(cors_origins="https://example.org")
    headers = {"Origin": "https://other.org", "Access-Control-Request-Method": "POST"}
    assert_problem(client.options("/segment", headers=headers), 400, "origin")
