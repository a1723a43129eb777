"""Every client gets the masks of `/segment`, and its calibrator where its format has a place."""

import asyncio
import base64
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from app.client import AsyncClient, Client
from tests.clients.processes import ROOT, free_port, running, service

triton_http = pytest.importorskip("tritonclient.http", exc_type=ImportError)
triton_grpc = pytest.importorskip("tritonclient.grpc", exc_type=ImportError)
huggingface_hub = pytest.importorskip("huggingface_hub")
cvat_driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")

from cvat_sdk.masks import decode_mask  # noqa: E402

MODELS = {"street.jpg": "camvid-street-int8", "nuclei.png": "nuclei"}
COPIES = 10
OPEN = 255  # no class


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


Sample = tuple[str, bytes]  # model and encoded image
Answer = tuple[str | None, np.ndarray]  # calibrator and mask
IMAGES: list[Sample] = [(model, image) for name, model in MODELS.items() for image in copies(name)]


@dataclass(frozen=True)
class Services:
    """Ports of a running service, ids of its classes by model and name, and a folder."""

    port: int
    grpc_port: int
    classes: dict[str, dict[str, int]]
    folder: Path

    @property
    def http(self) -> str:
        """Host and port over HTTP."""
        return f"127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        """Host and port over gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """The address of the service over HTTP."""
        return f"http://{self.http}"


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Iterator[Services]:
    """Run a service with HTTP and gRPC."""
    grpc_port = free_port()
    with running(service(tmp_path_factory.mktemp("service"), grpc_port=grpc_port)) as started:
        with urlopen(f"{started.url}/models") as response:
            classes = {
                model["name"]: {each["name"]: each["id"] for each in model["classes"]}
                for model in json.load(response)["models"]
            }
        yield Services(started.port, grpc_port, classes, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def expected(services) -> list[Answer]:
    """Return calibrator and mask of `/segment` for each image."""
    return [segment(services.port, model, image) for model, image in IMAGES]


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


def by_triton_http(services: Services, images: list[Sample]) -> list[Answer]:
    with triton_http.InferenceServerClient(services.http) as client:
        return [triton_answer(triton_http, client, *each) for each in images]


def by_triton_http_with_pixels(services: Services, images: list[Sample]) -> list[Answer]:
    with triton_http.InferenceServerClient(services.http) as client:
        return [
            triton_answer(triton_http, client, model, np.asarray(Image.open(io.BytesIO(image))))
            for model, image in images
        ]


def by_triton_grpc(services: Services, images: list[Sample]) -> list[Answer]:
    with triton_grpc.InferenceServerClient(services.grpc) as client:
        return [triton_answer(triton_grpc, client, *each) for each in images]


def by_kserve(services: Services, images: list[Sample]) -> list[Answer]:
    answers: list[Answer] = []
    for model in MODELS.values():
        own = [np.frombuffer(image, np.uint8) for name, image in images if name == model]
        path = services.folder / f"{model}.npz"
        np.savez(path, allow_pickle=False, **{f"{k:02}": image for k, image in enumerate(own)})
        command = [
            sys.executable, "-m", "tests.clients.kserve_client", services.url, model, str(path),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        with np.load(path) as masks:
            version = str(masks["version"])
            answers += [(version, masks[f"{k:02}"]) for k in range(len(own))]
    return answers


def by_huggingface(services: Services, images: list[Sample]) -> list[Answer]:
    answers: list[Answer] = []
    for model, image in images:
        client = huggingface_hub.InferenceClient(model=f"{services.url}/huggingface/{model}")
        joined = np.full(Image.open(io.BytesIO(image)).size[::-1], OPEN, np.uint8)
        for each in client.image_segmentation(image):
            assert 0 < each.score <= 1
            joined[np.asarray(each.mask) == 255] = services.classes[model][each.label]
        answers.append((None, joined))
    return answers


def by_cvat_sdk(services: Services, images: list[Sample]) -> list[Answer]:
    function = runpy.run_path(str(ROOT / "integrations/cvat.py"))["create"]
    functions = {name: function(url=services.url, model=name) for name in MODELS.values()}
    context = cvat_driver._DetectionFunctionContextImpl(
        frame_name="a.png", conf_threshold=None, conv_mask_to_poly=False
    )
    answers: list[Answer] = []
    for model, data in images:
        image = Image.open(io.BytesIO(data))
        mask = np.full(image.size[::-1], OPEN, np.uint8)
        for shape in functions[model].detect(context, image):
            drawn = decode_mask(shape.points, image_width=image.width, image_height=image.height)
            mask[drawn] = shape.label_id
        answers.append((None, mask))
    return answers


def by_cvat_serverless(services: Services, images: list[Sample]) -> list[Answer]:
    """As CVAT's server calls a function of nuclio."""
    answers: list[Answer] = []
    for model, data in images:
        body = json.dumps({"image": base64.b64encode(data).decode()}).encode()
        headers = {"Content-Type": "application/json", "X-Nuclio-Function-Name": model}
        request = Request(f"{services.url}/api/function_invocations", body, headers)
        mask = np.full(Image.open(io.BytesIO(data)).size[::-1], OPEN, np.uint8)
        versions = set()
        with urlopen(request, timeout=60) as response:
            for shape in json.load(response):
                *values, left, top, right, bottom = shape["mask"]
                box = np.s_[top : bottom + 1, left : right + 1]
                inside = np.array(values, bool).reshape(mask[box].shape)
                mask[box][inside] = services.classes[model][shape["label"]]
                versions |= {entry["value"] for entry in shape["attributes"]}
        (version,) = versions
        answers.append((version, mask))
    return answers


def by_own_client(services: Services, images: list[Sample]) -> list[Answer]:
    with Client(services.url) as client:
        found = [client.segment(image, model=model) for model, image in images]
    return [(each.calibrator, each.mask) for each in found]


def by_own_asyncio_client(services: Services, images: list[Sample]) -> list[Answer]:
    async def all_at_once() -> list[Answer]:
        async with AsyncClient(services.url) as client:
            calls = [client.segment(image, model=model) for model, image in images]
            return [(each.calibrator, each.mask) for each in await asyncio.gather(*calls)]

    return asyncio.run(all_at_once())


# Answers of these have no place for the calibrator's id.
WITHOUT_VERSION = (by_huggingface, by_cvat_sdk)
CLIENTS = (
    by_triton_http, by_triton_http_with_pixels, by_triton_grpc, by_kserve, by_huggingface,
    by_cvat_sdk, by_cvat_serverless, by_own_client, by_own_asyncio_client,
)  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_twenty_images_have_the_masks_and_the_calibrator_of_segment(client, services, expected):
    answers = client(services, IMAGES)
    assert len(answers) == len(expected) == 20
    for (version, mask), (calibrator, reference) in zip(answers, expected, strict=True):
        assert calibrator != "none"
        assert version == (None if client in WITHOUT_VERSION else calibrator)
        np.testing.assert_array_equal(mask, reference)


def test_tritonclient_reads_health_and_metadata(services):
    with triton_http.InferenceServerClient(services.http) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("nuclei")
        assert client.get_server_metadata()["name"] == "segcal"
        assert "uncalibrated" in client.get_model_metadata("nuclei")["versions"]
    with triton_grpc.InferenceServerClient(services.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("nuclei")
        assert client.get_server_metadata().name == "segcal"
        assert "uncalibrated" in client.get_model_metadata("nuclei").versions


def test_huggingface_parameters_and_default_model(services):
    client = huggingface_hub.InferenceClient(model=f"{services.url}/huggingface")
    _, image = IMAGES[0]
    everything = client.image_segmentation(image)
    sure = client.image_segmentation(image, threshold=0.9, subtask="semantic")
    assert [each.label for each in sure] == [e.label for e in everything if e.score >= 0.9]
    assert 0 < len(sure) < len(everything)


def test_errors_reach_the_clients(services):
    with triton_http.InferenceServerClient(services.http) as client:
        with pytest.raises(Exception, match="expected one of the models"):
            client.get_model_metadata("gone")
        with pytest.raises(Exception, match="expected a JPEG"):
            triton_answer(triton_http, client, "nuclei", b"no image")
    with triton_grpc.InferenceServerClient(services.grpc) as client:
        with pytest.raises(Exception, match=r"NOT_FOUND.*expected one of the models"):
            client.get_model_metadata("gone")
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*expected a JPEG"):
            triton_answer(triton_grpc, client, "nuclei", b"no image")
    client = huggingface_hub.InferenceClient(model=f"{services.url}/huggingface/gone")
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="404"):
        client.image_segmentation(IMAGES[0][1])
