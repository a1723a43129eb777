"""CVAT's calls on a nuclio dashboard, answered by the service."""

import base64
import json

import numpy as np

from tests.factories.service import (
    THIRDS_MASK,
    assert_problem,
    encoded,
    post,
    solid,
    thirds,
)


def invoke(client, image, name="tiny", **body):
    return client.post(
        "/api/function_invocations",
        json={"image": base64.b64encode(image).decode(), **body},
        headers={"x-nuclio-function-name": name, "x-nuclio-path": "/"},
    )


def drawn(items, shape):
    """Draw masks as CVAT does: the last four numbers are the inclusive box of the others."""
    mask = np.full(shape, 255)
    for item in items:
        *pixels, left, top, right, bottom = item["mask"]
        box = np.array(pixels, bool).reshape(bottom - top + 1, right - left + 1)
        mask[top : bottom + 1, left : right + 1][box] = int(item["label"].removeprefix("class-"))
    return mask


def test_models_are_functions_of_type_detector(client):
    functions = client.get("/api/functions").json()
    assert list(functions) == ["tiny"]
    function = client.get("/api/functions/tiny").json()
    assert functions["tiny"] == function
    # The fields that CVAT reads of a function.
    assert function["metadata"]["name"] == "tiny"
    assert function["metadata"]["annotations"]["type"] == "detector"
    assert function["metadata"]["annotations"]["name"] == "Tiny tiny"
    labels = json.loads(function["metadata"]["annotations"]["spec"])
    assert [label["name"] for label in labels] == ["class-0", "class-1", "class-2"]
    assert function["status"]["state"] == "ready"
    assert function["spec"]["description"].startswith("Tiny tiny")
    assert_problem(client.get("/api/functions/other"), 404, "other")


def test_masks_are_the_mask_of_segment(client):
    answer = invoke(client, encoded(thirds()))
    items = answer.json()
    assert (drawn(items, (8, 12)) == THIRDS_MASK).all()
    body = post(client, thirds()).json()
    version = body["calibration"]["calibrator"]
    assert answer.headers["x-calibrator"] == version
    for item, row in zip(items, body["classes"], strict=True):
        assert item["type"] == "mask"
        assert item["confidence"] == f"{row['mean_confidence']:.4f}"
        assert item["attributes"] == [{"name": "calibrator", "value": version}]
        left = 4 * row["id"]
        assert item["points"] == [left + 4, 0, left + 4, 8, left, 8, left, 0]


def test_pixels_below_the_threshold_have_no_label(client):
    image = thirds().copy()
    image[:, 8:] = 128
    items = invoke(client, encoded(image), threshold=0.5).json()
    mask = drawn(items, (8, 12))
    assert (mask[:, :6] == THIRDS_MASK[:, :6]).all()
    assert (mask[:, 10:] == 255).all()
    grey = encoded(solid((128, 128, 128)))
    assert invoke(client, grey, threshold=1).json() == []


def test_calls_that_are_not_cvats_are_an_error(client):
    assert_problem(invoke(client, encoded(thirds()), name="other"), 404, "other")
    assert_problem(invoke(client, b"no image"), 400)
    body = {"image": "?"}
    headers = {"x-nuclio-function-name": "tiny"}
    answer = client.post("/api/function_invocations", json=body, headers=headers)
    assert_problem(answer, 400, "base64")
    answer = client.post("/api/function_invocations", json=body)
    assert_problem(answer, 422, "x-nuclio-function-name")
