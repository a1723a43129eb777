"""Helpers to test the service: images, requests, and assertions on responses.

The model `tiny` (see `models`) gives a saturated red pixel the logits (4, 0, 0), and so on
for green and blue; a saturated colour's confidence is e^4 / (e^4 + 2).
"""

import io
import math
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx2
import numpy as np
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from app.api.server import build_server
from app.calibration.base import Calibrator
from app.calibration.drift import Reference
from app.calibration.methods.temperature import Temperature
from app.inference.model_card import read_model_folder
from app.main import create_app
from app.schemas.calibrator import CertifiedThreshold, Manifest
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import new_id

WORKERS = 2  # concurrent requests, where a test depends on their number
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SATURATED = math.exp(4) / (math.exp(4) + 2)  # 0.9647
SATURATED_AT_2 = math.exp(2) / (math.exp(2) + 2)  # 0.7870, at temperature 2
READY_S = 120

ImageArray = NDArray[np.uint8]


class Response(Protocol):
    """The common interface of responses of httpx and of the test client."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> httpx2.Headers: ...
    @property
    def text(self) -> str: ...
    def json(self) -> dict[str, object]: ...


def solid(color: tuple[int, int, int], height: int = 8, width: int = 12) -> ImageArray:
    """Build an image of one colour, uint8 RGB [height,width,3]."""
    return np.full((height, width, 3), color, np.uint8)


def thirds() -> ImageArray:
    """Build an image of red, green and blue columns, uint8 RGB [8,12,3]: classes 0, 1 and 2."""
    return np.concatenate([solid(color, 8, 4) for color in (RED, GREEN, BLUE)], axis=1)


WHITE = solid((255, 255, 255))  # the image for which `write_endless_model` takes days
THIRDS_MASK = np.repeat(np.array([[0, 1, 2]], np.uint8), 4, axis=1).repeat(8, axis=0)


def encoded(image: ImageArray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    with_strip_image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with_strip_image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """Decode the image of a response."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def post(
    client: TestClient | httpx2.Client,
    image: ImageArray | bytes,
    headers: dict[str, str] | None = None,
    /,
    **query: str | float,
) -> httpx2.Response:
    """Send an image as a raw body."""
    body = image if isinstance(image, bytes) else encoded(image)
    return client.post(
        "/segment",
        content=body,
        params=query,
        headers={"Content-Type": "image/png"} | (headers or {}),
    )


def assert_problem(response: Response, status: int, *words: str) -> dict[str, object]:
    """Assert that a response is a problem (RFC 9457) with all `words` in its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    expected = {"type", "title", "status", "detail"} | ({"errors"} if status == 422 else set())
    assert body.keys() == expected
    assert body["status"] == status
    for key in ("type", "title", "detail"):
        assert isinstance(body[key], str)
        assert body[key]
    detail = str(body["detail"])
    assert "got" in detail or status >= 500, detail
    for word in words:
        assert word in detail, detail
    for trace in ("Traceback", 'File "', "line ", ".py"):
        assert trace not in response.text, response.text
    if status == 422:
        errors = body["errors"]
        assert isinstance(errors, list)
        assert errors
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    return body


def assert_serves(client: TestClient | httpx2.Client) -> None:
    """Assert that the service segments a valid image correctly."""
    response = post(client, thirds(), {"Accept": "image/png"})
    assert response.status_code == 200, response.text
    assert (np.asarray(decoded(response.content)) == THIRDS_MASK).all()


@contextmanager
def open_client(settings: Settings) -> Iterator[TestClient]:
    """Open the application in this process, once it is ready."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def served_mask(settings: Settings, image: ImageArray) -> NDArray[np.integer]:
    """Return the mask [H,W] with which `POST /segment` answers an image."""
    with open_client(settings) as client:
        response = post(client, image, output="mask")
        assert response.status_code == 200, response.text
        return np.array(decoded(response.content))


@contextmanager
def open_server(settings: Settings) -> Iterator[str]:
    """Serve the application on a socket, in a thread; yields its address once it is ready."""
    app = create_app(settings)
    server = build_server(app, "127.0.0.1", 0, log_level="warning")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + READY_S
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx2.Client(base_url=url) as client:
            wait_until_ready(client)
        yield url
    finally:
        server.should_exit = True
        thread.join()


def wait_until_ready(client: TestClient | httpx2.Client) -> None:
    """Poll `/readyz` until the service is ready."""
    deadline = time.monotonic() + READY_S
    while (answer := client.get("/readyz")).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)


def publish_temperature(
    artifacts_dir: Path | str,
    model_folder: Path,
    temperature: float,
    *,
    activate: bool = True,
    sha256: str | None = None,
    thresholds: tuple[CertifiedThreshold, ...] = (),
    reference: Reference | None = None,
) -> str:
    """Publish a calibrator of a given temperature for a model; return its id."""
    calibrator = Temperature(read_model_folder(model_folder).num_classes)
    calibrator.beta.copy_(torch.tensor(1 / temperature))
    return publish_calibrator(
        artifacts_dir, model_folder, calibrator,
        activate=activate, sha256=sha256, thresholds=thresholds, reference=reference,
    )  # fmt: skip


def publish_calibrator(
    artifacts_dir: Path | str,
    model_folder: Path,
    calibrator: Calibrator,
    *,
    activate: bool = True,
    sha256: str | None = None,
    thresholds: tuple[CertifiedThreshold, ...] = (),
    reference: Reference | None = None,
) -> str:
    """Store a calibrator for a model and return its id."""
    folder = read_model_folder(model_folder)
    manifest = Manifest(
        id=new_id(calibrator.method),
        model=folder.card.name,
        model_sha256=sha256 or folder.sha256,
        weights_sha256=folder.weights_sha256,
        method=calibrator.method,
        num_classes=folder.num_classes,
        fitted_at="2026-01-02T03:04:05Z",
        images=4,
        pixels=400,
        ece_before=0.25,
        ece_after=0.125,
        note=f"by the test {secrets.token_hex(4)}",  # equal files would be one version
        thresholds=thresholds,
    )
    store = ArtifactStore(artifacts_dir)
    version = store.publish(manifest, calibrator, {"chosen": calibrator.method}, reference).id
    if activate:
        store.activate(folder.card.name, version, "for a test", by="a test")
    return version
