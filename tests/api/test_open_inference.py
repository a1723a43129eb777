"""The Open Inference Protocol v2 over HTTP: the same bits as `/segment`, errors with `error`."""

import base64
import gzip
import io
import json
import struct
import zlib

import numpy as np
import pytest

from app.open_inference import InferenceResponse, decode_body, read_tensors
from app.schemas.calibrator import CertifiedThreshold
from tests.api.test_huggingface import assert_protocol_problem
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    RED,
    THIRDS_MASK,
    assert_serves,
    encoded,
    post,
    publish_temperature,
    solid,
    thirds,
)

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/tiny/infer"
PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 12, 3], "data": thirds().tolist()}
FILES = [base64.b64encode(encoded(thirds())).decode()]
PNG = {"name": "image", "datatype": "BYTES", "shape": [1], "data": FILES}


def segment_arrays(client, image, **query):
    """Return the mask and the confidence float32 of `/segment`."""
    response = post(client, image, {"Accept": "application/x-npz"}, **query)
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content)) as arrays:
        return response.headers["x-calibrator"], arrays["mask"], arrays["confidence"]


def infer(client, images, path=INFER, compress=None, **body):
    """Send encoded images as bytes after the JSON; return the response's message and arrays."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    parameters = {"binary_data_size": len(data)}
    image = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "parameters": parameters}
    text = json.dumps({"inputs": [image], **body}).encode()
    headers = {LENGTH: str(len(text))}
    content = text + data
    if compress is not None:
        headers["Content-Encoding"], content = compress[0], compress[1](content)
    response = client.post(path, content=content, headers=headers)
    assert response.status_code == 200, response.text
    message, rest = decode_body(response.content, response.headers.get(LENGTH), InferenceResponse)
    return message, {tensor.name: tensor.values for tensor in read_tensors(message.outputs, rest)}


def test_server_describes_itself(client):
    for path in ("/v2", "/v2/"):
        body = client.get(path).json()
        assert body["name"] == "segcal"
        assert body["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_model_lists_its_calibrators_as_versions(client):
    version = client.get("/models/tiny").json()["active_calibrator"]
    body = client.get("/v2/models/tiny").json()
    assert body["versions"] == [version, "uncalibrated"]
    assert body["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [(each["name"], each["datatype"]) for each in body["outputs"]] == [
        ("mask", "UINT8"),
        ("confidence", "FP32"),
    ]
    for known in body["versions"]:
        assert client.get(f"/v2/models/tiny/versions/{known}").json()["versions"] == [known]
        ready = client.get(f"/v2/models/tiny/versions/{known}/ready")
        assert ready.json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}


@pytest.mark.parametrize("compress", [None, ("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_answer_has_the_bits_of_segment(client, compress):
    calibrator, mask, confidence = segment_arrays(client, thirds())
    message, arrays = infer(
        client, [encoded(thirds())], compress=compress, id="7",
        parameters={"binary_data_output": True},
    )  # fmt: skip
    assert (message.model_name, message.model_version, message.id) == ("tiny", calibrator, "7")
    np.testing.assert_array_equal(arrays["mask"], mask[None])
    assert arrays["confidence"].dtype == np.float32
    np.testing.assert_array_equal(arrays["confidence"][0].astype(np.float16), confidence)


@pytest.mark.parametrize("image", [PNG, PIXELS], ids=["png", "pixels"])
def test_images_and_outputs_may_be_json(client, image):
    _, mask, _ = segment_arrays(client, thirds())
    response = client.post(INFER, json={"inputs": [image], "outputs": [{"name": "mask"}]})
    assert response.headers["content-type"] == "application/json"
    (output,) = response.json()["outputs"]
    assert output == {
        "name": "mask", "datatype": "UINT8", "shape": [1, 8, 12], "data": mask.ravel().tolist(),
    }  # fmt: skip


def test_each_output_is_as_asked_for(client):
    message, arrays = infer(
        client,
        [encoded(thirds())],
        outputs=[
            {"name": "confidence", "parameters": {"binary_data": True}},
            {"name": "mask", "parameters": {"binary_data": False}},
        ],
    )
    assert [output.name for output in message.outputs] == ["confidence", "mask"]
    assert message.outputs[0].parameters == {"binary_data_size": 8 * 12 * 4}
    assert message.outputs[1].data is not None
    np.testing.assert_array_equal(arrays["mask"][0], THIRDS_MASK)


def test_version_chooses_the_calibrator(client):
    _, _, plain = segment_arrays(client, thirds(), calibrator="none")
    message, arrays = infer(
        client, [encoded(thirds())], path="/v2/models/tiny/versions/uncalibrated/infer"
    )
    assert message.model_version == "uncalibrated"
    np.testing.assert_array_equal(arrays["confidence"][0].astype(np.float16), plain)
    version = client.get("/models/tiny").json()["active_calibrator"]
    named, _ = infer(client, [encoded(thirds())], path=f"/v2/models/tiny/versions/{version}/infer")
    assert named.model_version == version


def test_images_of_one_size_are_one_batch(client):
    _, arrays = infer(client, [encoded(thirds()), encoded(solid(RED))])
    np.testing.assert_array_equal(
        arrays["mask"], np.stack([THIRDS_MASK, np.zeros_like(THIRDS_MASK)])
    )


def test_thresholds_are_parameters(make_client, models_dir, artifacts_dir):
    level = CertifiedThreshold(0.1, 0.72, 0.1, 0.6, 0.01, 40)
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2, thresholds=(level,))
    client = make_client()
    for name, value in (("max_error", 0.1), ("min_confidence", 0.72)):
        _, mask, _ = segment_arrays(client, thirds(), **{name: value})
        assert (mask == 255).any()
        message, arrays = infer(client, [encoded(thirds())], parameters={name: value})
        assert message.parameters["threshold"] == 0.72
        assert message.parameters.get("guarantee") == {"max_error": "not-measured"}.get(name)
        np.testing.assert_array_equal(arrays["mask"][0], mask)


def test_masks_of_many_classes_have_16_bits(make_client, models_dir):
    write_onnx_model(models_dir, "many", num_classes=300)
    client = make_client(default_model="tiny")
    assert client.get("/v2/models/many").json()["outputs"][0]["datatype"] == "UINT16"
    _, arrays = infer(
        client, [encoded(thirds())], path="/v2/models/many/infer",
        parameters={"min_confidence": 1},
    )  # fmt: skip
    assert arrays["mask"].dtype == np.uint16
    assert (arrays["mask"] == 65535).all()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, ["inputs"]),
        ({"inputs": []}, 422, ["one input named 'image'"]),
        ({"inputs": [{**PNG, "name": "x"}]}, 422, ["one input named 'image'", "['x']"]),
        ({"inputs": [PNG, PNG]}, 422, ["one input named 'image'"]),
        ({"inputs": [{**PNG, "shape": [0], "data": []}]}, 422, ["1 to 256 images"]),
        ({"inputs": [{**PNG, "shape": [257], "data": FILES * 257}]}, 422, ["got 257"]),
        ({"inputs": [{**PNG, "data": ["AAAA"]}]}, 400, ["expected"]),
        ({"inputs": [{**PIXELS, "shape": [8, 12, 3]}]}, 422, ["UINT8 [N,H,W,3]"]),
        ({"inputs": [{**PIXELS, "datatype": "FP32"}]}, 422, ["got FP32 [1, 8, 12, 3]"]),
        ({"inputs": [{**PIXELS, "shape": [1, 0, 12, 3], "data": []}]}, 422, ["[1, 0, 12, 3]"]),
        ({"inputs": [PNG], "outputs": [{"name": "logits"}]}, 422, ["'mask', 'confidence'"]),
        ({"inputs": [PNG], "parameters": {"max_eror": 0.1}}, 422, ["max_eror"]),
        ({"inputs": [PNG], "parameters": {"max_error": 2}}, 422, ["max_error"]),
        ({"inputs": [PNG], "parameters": {"max_error": 0.1}}, 409, ["max_error=0.1"]),
        (
            {"inputs": [PNG], "parameters": {"max_error": 0.1, "min_confidence": 0.1}},
            422,
            ["at most one of"],
        ),
    ],
)
def test_invalid_requests_are_rejected_with_the_key_error(client, body, status, words):
    assert_protocol_problem(client.post(INFER, json=body), status, *words)
    assert_serves(client)


def test_images_of_several_sizes_are_rejected(client):
    images = [encoded(thirds()), encoded(solid(RED, 4, 4))]
    data = [base64.b64encode(image).decode() for image in images]
    response = client.post(INFER, json={"inputs": [{**PNG, "shape": [2], "data": data}]})
    assert_protocol_problem(response, 422, "images of one size", "12x8 and 4x4")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/gone", ["gone"]),
        ("/v2/models/gone/ready", ["gone"]),
        ("/v2/models/tiny/versions/1", ["'1'"]),
        ("/v2/models/tiny/versions/1/ready", ["'1'"]),
        ("/v2/models/tiny/stats", ["expected a path of this service"]),
    ],
)
def test_unknown_models_versions_and_paths_are_404(client, path, words):
    assert_protocol_problem(client.get(path), 404, *words)


def test_limits_of_segment_hold(make_client):
    client = make_client(max_pixels=100, max_upload_bytes=20_000)
    assert_protocol_problem(client.post(INFER, json={"inputs": [PNG, PNG]}), 422)
    two = {**PNG, "shape": [2], "data": FILES * 2}
    assert_protocol_problem(client.post(INFER, json={"inputs": [two]}), 413, "all images", "12x8")
    large = {"name": "image", "datatype": "UINT8", "shape": [1, 11, 10, 3], "data": [0] * 330}
    assert_protocol_problem(client.post(INFER, json={"inputs": [large]}), 413, "10x11 = 110")
    assert_protocol_problem(client.post(INFER, content=b" " * 100_000), 413, "at most")
    bomb = gzip.compress(b" " * 100_000)
    headers = {"Content-Encoding": "gzip"}
    assert_protocol_problem(client.post(INFER, content=bomb, headers=headers), 413, "decompressed")
    assert_protocol_problem(
        client.post(INFER, content=gzip.compress(b"{}")[:-1], headers=headers), 400, "breaks off"
    )
    assert_protocol_problem(client.post(INFER, content=b"x", headers=headers), 400, "in gzip")
    other = {"Content-Encoding": "br"}
    assert_protocol_problem(client.post(INFER, content=b"x", headers=other), 415, "'br'")
    assert client.post(INFER, json={"inputs": [PNG]}).status_code == 200


def test_tokens_are_those_of_segment(make_client):
    client = make_client(api_tokens=("secret-1",))
    assert client.get("/v2/health/ready").status_code == 200
    for response in (client.get("/v2/models/tiny"), client.post(INFER, json={"inputs": [PNG]})):
        assert_protocol_problem(response, 401, "bearer token")
    headers = {"Authorization": "Bearer secret-1"}
    assert client.post(INFER, json={"inputs": [PNG]}, headers=headers).status_code == 200


def test_damaged_active_calibrator_is_not_ready(make_client, models_dir, artifacts_dir):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    (artifacts_dir / "tiny" / version / "manifest.json").write_text("{}")
    client = make_client()
    assert_protocol_problem(client.get("/v2/models/tiny/ready"), 503, version)
    assert client.get("/v2/models/tiny/versions/uncalibrated/ready").status_code == 200


def test_segmentations_are_counted_and_observed_for_drift(make_client, models_dir, artifacts_dir):
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    client = make_client()
    infer(client, [encoded(thirds()), encoded(solid(RED))])
    text = client.get("/metrics").text
    assert 'segcal_image_mean_confidence_count{model="tiny"} 2.0' in text
    assert 'route="/v2/models/{model}/infer"' in text
