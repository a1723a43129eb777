"""Clients of the Open Inference Protocol and of Hugging Face get the masks of `/segment`."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.clients.processes import ROOT, free_port, running, service

triton_http = pytest.importorskip("tritonclient.http", exc_type=ImportError)
triton_grpc = pytest.importorskip("tritonclient.grpc", exc_type=ImportError)
huggingface_hub = pytest.importorskip("huggingface_hub")

MODELS = {"street.jpg": "camvid-street-int8", "nuclei.png": "nuclei"}
COPIES = 10


def copies(name: str) -> list[bytes]:
    """Return changed copies of an example, the first one as it is; PNG and JPEG by turns."""
    image = Image.open(ROOT / "examples" / name).convert("RGB")
    width, height = image.size
    found = []
    for index in range(COPIES):
        box = (3 * index, 2 * index, width - 5 * index, height - index)
        copy = ImageEnhance.Brightness(image.crop(box)).enhance(1 - 0.05 * index)
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG" if index % 2 else "PNG")
        found.append(buffer.getvalue())
    return found


IMAGES = [(model, image) for name, model in MODELS.items() for image in copies(name)]
Answer = tuple[str, np.ndarray]  # calibrator and mask


@pytest.fixture(scope="module")
def ports(tmp_path_factory) -> Iterator[tuple[int, int]]:
    """Return the ports of HTTP and gRPC of a running service."""
    grpc_port = free_port()
    with running(service(tmp_path_factory.mktemp("service"), grpc_port=grpc_port)) as started:
        yield started.port, grpc_port


@pytest.fixture(scope="module")
def expected(ports) -> list[Answer]:
    """Return calibrator and mask of `/segment` for each image."""
    return [segment(ports[0], model, image) for model, image in IMAGES]


def segment(port: int, model: str, image: bytes) -> Answer:
    """Segment an image by `POST /segment`."""
    url = f"http://127.0.0.1:{port}/segment?model={model}"
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    with urlopen(Request(url, image, headers), timeout=60) as response:
        return response.headers["X-Calibrator"], np.asarray(Image.open(io.BytesIO(response.read())))


def triton_answer(module, client, model: str, image: bytes | np.ndarray) -> Answer:
    """Segment an image by one of tritonclient's modules."""
    values = np.array([image], np.object_) if isinstance(image, bytes) else image[None]
    kind = "BYTES" if isinstance(image, bytes) else "UINT8"
    given = module.InferInput("image", list(values.shape), kind)
    given.set_data_from_numpy(values)
    result = client.infer(model, [given])
    response = result.get_response()
    version = response["model_version"] if isinstance(response, dict) else response.model_version
    confidence = result.as_numpy("confidence")
    assert confidence.dtype == np.float32
    assert ((confidence > 0) & (confidence <= 1)).all()
    return version, result.as_numpy("mask")[0]


def assert_same(answers: list[Answer], expected: list[Answer]) -> None:
    for (version, mask), (calibrator, reference) in zip(answers, expected, strict=True):
        assert version == calibrator
        assert version != "none"
        np.testing.assert_array_equal(mask, reference)


def test_tritonclient_over_http(ports, expected):
    with triton_http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("nuclei")
        assert client.get_server_metadata()["name"] == "segcal"
        assert "uncalibrated" in client.get_model_metadata("nuclei")["versions"]
        answers = [triton_answer(triton_http, client, *each) for each in IMAGES]
        assert_same(answers, expected)


def test_tritonclient_with_pixels_in_place_of_files(ports, expected):
    pixels = [(model, np.asarray(Image.open(io.BytesIO(image)))) for model, image in IMAGES]
    with triton_http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        answers = [triton_answer(triton_http, client, *each) for each in pixels]
        assert_same(answers, expected)


def test_tritonclient_over_grpc(ports, expected):
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("nuclei")
        assert client.get_server_metadata().name == "segcal"
        assert "uncalibrated" in client.get_model_metadata("nuclei").versions
        answers = [triton_answer(triton_grpc, client, *each) for each in IMAGES]
        assert_same(answers, expected)


def test_kserve_client(ports, expected, tmp_path):
    path, url = tmp_path / "images.npz", f"http://127.0.0.1:{ports[0]}"
    answers: list[Answer] = []
    for model in MODELS.values():
        images = [np.frombuffer(image, np.uint8) for name, image in IMAGES if name == model]
        named = {f"{index:02}": image for index, image in enumerate(images)}
        np.savez(path, allow_pickle=False, **named)
        command = [sys.executable, "-m", "tests.clients.kserve_client", url, model, str(path)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        with np.load(path) as masks:
            version = str(masks["version"])
            answers += [(version, masks[f"{index:02}"]) for index in range(len(images))]
    assert_same(answers, expected)


def test_huggingface_client(ports, expected):
    classes = {}
    with urlopen(f"http://127.0.0.1:{ports[0]}/models") as response:
        for model in json.load(response)["models"]:
            classes[model["name"]] = {each["name"]: each["id"] for each in model["classes"]}
    for (model, image), (_, mask) in zip(IMAGES, expected, strict=True):
        url = f"http://127.0.0.1:{ports[0]}/huggingface/{model}"
        segments = huggingface_hub.InferenceClient(model=url).image_segmentation(image)
        joined = np.full(mask.shape, 255, np.uint8)
        for each in segments:
            assert 0 < each.score <= 1
            joined[np.asarray(each.mask) == 255] = classes[model][each.label]
        np.testing.assert_array_equal(joined, mask)


def test_huggingface_parameters_and_default_model(ports):
    url = f"http://127.0.0.1:{ports[0]}/huggingface"
    client = huggingface_hub.InferenceClient(model=url)
    _, image = IMAGES[0]
    everything = client.image_segmentation(image)
    sure = client.image_segmentation(image, threshold=0.9, subtask="semantic")
    assert [each.label for each in sure] == [e.label for e in everything if e.score >= 0.9]
    assert 0 < len(sure) < len(everything)


def test_errors_reach_the_clients(ports):
    with triton_http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        with pytest.raises(Exception, match="expected one of the models"):
            client.get_model_metadata("gone")
        with pytest.raises(Exception, match="expected a JPEG"):
            triton_answer(triton_http, client, "nuclei", b"no image")
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        with pytest.raises(Exception, match=r"NOT_FOUND.*expected one of the models"):
            client.get_model_metadata("gone")
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*expected a JPEG"):
            triton_answer(triton_grpc, client, "nuclei", b"no image")
    client = huggingface_hub.InferenceClient(model=f"http://127.0.0.1:{ports[0]}/huggingface/gone")
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="404"):
        client.image_segmentation(IMAGES[0][1])
