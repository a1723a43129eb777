"""`POST /segment` with a model in mode slide, which predicts in windows."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MakeClient
from tests.factories.models import write_onnx_model
from tests.factories.service import encoded, post, publish_temperature

IMAGE = np.random.default_rng(0).integers(0, 256, (75, 53, 3), dtype=np.uint8)


@pytest.fixture
def client(models_dir, artifacts_dir, make_client: MakeClient):
    """Open a service with one network as `tiny` (whole) and `windows` (slide), temperature 2."""
    card: dict[str, Any] = {"mode": "slide", "crop": [16, 24], "window_stride": [8, 12]}
    slide = write_onnx_model(models_dir, "windows", **card)
    for model in (slide, models_dir / "tiny"):
        publish_temperature(artifacts_dir, model, temperature=2)
    return make_client(max_pixels=IMAGE.shape[0] * IMAGE.shape[1])


def arrays(client, model: str, **query: str | float) -> tuple[NDArray[Any], NDArray[Any]]:
    answer = post(client, IMAGE, {"Accept": "application/x-npz"}, model=model, **query)
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as data:
        return data["mask"], data["confidence"].astype(np.float32)


@pytest.mark.parametrize("query", [{}, {"calibrator": "none"}, {"tta": "flip"}])
def test_slide_equals_whole(client, query):
    mask, confidence = arrays(client, "windows", **query)
    expected_mask, expected = arrays(client, "tiny", **query)
    assert mask.shape == IMAGE.shape[:2]
    assert np.mean(mask != expected_mask) < 0.002  # where two classes tie
    assert np.abs(confidence - expected).max() < 1e-3


def test_multiscale_works_in_windows(client):
    mask, confidence = arrays(client, "windows", tta="multiscale")
    assert mask.max() <= 2
    assert (confidence > 1 / 3 - 1e-3).all()


def test_abstention_works_in_windows(client):
    mask, confidence = arrays(client, "windows", min_confidence=0.4)
    abstained = mask == 255
    assert 0 < np.mean(abstained) < 1
    assert confidence[abstained].max() < 0.4005  # in float16
    assert confidence[~abstained].min() > 0.3995


def test_all_stages_are_timed(client):
    timing = post(client, IMAGE, model="windows").headers["Server-Timing"]
    stages = [part.partition(";")[0] for part in timing.split(", ")]
    assert stages == ["decode", "preprocess", "inference", "calibration", "encode", "total"]


def test_model_description_lists_windows(client):
    policy = client.get("/models/windows").json()["input"]
    assert (policy["mode"], policy["crop"], policy["stride"]) == ("slide", [16, 24], [8, 12])


def test_image_above_the_limit_is_rejected_before_any_window(client):
    taller = np.concatenate([IMAGE, IMAGE[:1]])
    assert post(client, encoded(taller), model="windows").status_code == 413
