"""The gRPC service of the Open Inference Protocol, by calls on a channel of grpcio."""

import io
import struct
import sys
from collections.abc import Iterator

import grpc
import httpx2
import numpy as np
import pytest

from app.api import server
from app.api.open_inference import grpc_server
from app.api.open_inference.grpc_messages import SERVICE, build_messages
from app.errors import SettingsError
from app.settings import load_settings
from tests.factories.inference_server import free_port
from tests.factories.service import encoded, open_server, post, thirds

MESSAGES = build_messages()
IMAGE = encoded(thirds())


@pytest.fixture(scope="module")
def service(shared_folder) -> Iterator[tuple[str, str]]:
    """Serve over both protocols; yields the address of HTTP, and that of gRPC."""
    port = free_port()
    settings = load_settings(
        models_dir=shared_folder / "models",
        artifacts_dir=shared_folder / "artifacts",
        threads=1,
        grpc_port=port,
        api_tokens=("secret-1",),
    )
    with open_server(settings) as url:
        yield url, f"127.0.0.1:{port}"


def call(address, method, token="secret-1", **fields):
    """Call a method and return its response."""
    with grpc.insecure_channel(address) as channel:
        invoke = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=MESSAGES[f"{method}Request"].SerializeToString,
            response_deserializer=MESSAGES[f"{method}Response"].FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        return invoke(MESSAGES[f"{method}Request"](**fields), metadata=metadata, timeout=60)


def infer(address, image, raw=(), **fields):
    return call(
        address, "ModelInfer", model_name="tiny", inputs=[image], raw_input_contents=raw, **fields
    )


def as_bytes(*images):
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)]}


PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 12, 3]}
LENGTH = struct.pack("<I", len(IMAGE))


def test_server_and_model_describe_themselves(service):
    _, address = service
    assert call(address, "ServerLive", token="").live
    assert call(address, "ServerReady", token="").ready
    assert call(address, "ServerMetadata", token="").name == "segcal"
    described = call(address, "ModelMetadata", name="tiny")
    assert list(described.versions)[-1] == "uncalibrated"
    assert [output.name for output in described.outputs] == ["mask", "confidence"]
    assert call(address, "ModelReady", name="tiny", version="uncalibrated").ready


@pytest.mark.parametrize(
    ("image", "raw"),
    [
        (as_bytes(IMAGE), [LENGTH + IMAGE]),
        ({**as_bytes(IMAGE), "contents": {"bytes_contents": [IMAGE]}}, []),
        (PIXELS, [thirds().tobytes()]),
        ({**PIXELS, "contents": {"uint_contents": thirds().ravel().tolist()}}, []),
    ],
    ids=["raw-file", "file", "raw-pixels", "pixels"],
)
def test_answer_has_the_bits_of_segment(service, image, raw):
    url, address = service
    with httpx2.Client(base_url=url, headers={"Authorization": "Bearer secret-1"}) as client:
        expected = post(client, thirds(), {"Accept": "application/x-npz"})
    response = infer(address, image, raw, id="7")
    assert response.id == "7"
    assert response.model_version == expected.headers["x-calibrator"]
    assert response.parameters["calibrator"].string_param == response.model_version
    mask, confidence = response.raw_output_contents
    with np.load(io.BytesIO(expected.content)) as arrays:
        assert mask == arrays["mask"].tobytes()
        served = np.frombuffer(confidence, np.float32).reshape(8, 12)
        np.testing.assert_array_equal(served.astype(np.float16), arrays["confidence"])
    assert [list(output.shape) for output in response.outputs] == [[1, 8, 12]] * 2


def test_outputs_version_and_parameters_are_as_asked_for(service):
    response = infer(
        service[1], as_bytes(IMAGE), [LENGTH + IMAGE],
        model_version="uncalibrated",
        outputs=[{"name": "mask"}],
        parameters={"min_confidence": {"double_param": 1}},
    )  # fmt: skip
    assert response.model_version == "uncalibrated"
    assert [output.name for output in response.outputs] == ["mask"]
    assert set(response.raw_output_contents[0]) == {255}
    assert response.parameters["threshold"].double_param == 1


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_name": "gone"}, grpc.StatusCode.NOT_FOUND, "expected one of the models"),
        ({"token": "other"}, grpc.StatusCode.UNAUTHENTICATED, "bearer token"),
        ({"token": ""}, grpc.StatusCode.UNAUTHENTICATED, "bearer token"),
        ({"raw_input_contents": [b"", b""]}, grpc.StatusCode.INVALID_ARGUMENT, "got 2"),
        ({"raw_input_contents": [b"x"]}, grpc.StatusCode.INVALID_ARGUMENT, "1 bytes"),
        ({"outputs": [{"name": "x"}]}, grpc.StatusCode.INVALID_ARGUMENT, "'x'"),
        (
            {"parameters": {"max_error": {"double_param": 0.1}}},
            grpc.StatusCode.FAILED_PRECONDITION,
            "max_error=0.1",
        ),
    ],
)
def test_errors_have_their_status(service, fields, code, words):
    given = {"model_name": "tiny", "raw_input_contents": [LENGTH + IMAGE], **fields}
    with pytest.raises(grpc.RpcError) as caught:
        call(service[1], "ModelInfer", inputs=[as_bytes(IMAGE)], **given)
    assert caught.value.code() is code
    assert words in caught.value.details()


def test_internal_error_is_not_disclosed(service, monkeypatch):
    def crash(*_args):
        raise RuntimeError("a secret")

    monkeypatch.setattr(grpc_server, "infer", crash)
    with pytest.raises(grpc.RpcError) as caught:
        infer(service[1], as_bytes(IMAGE), [LENGTH + IMAGE])
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == grpc_server.CRASHED


def test_missing_packages_stop_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "app.api.open_inference.grpc_server", raising=False)
    with pytest.raises(SettingsError, match=r"segcal\[grpc\]"):
        server.grpc_module()
