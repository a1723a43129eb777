"""`POST /huggingface`: labels, scores and masks as Hugging Face's clients read them."""

import base64

import numpy as np
import pytest

from tests.factories.service import THIRDS_MASK, assert_serves, decoded, encoded, post, thirds

IMAGE = encoded(thirds())


def as_json(**parameters):
    return {"inputs": base64.b64encode(IMAGE).decode(), "parameters": parameters}


def assert_protocol_problem(response, status, *words):
    body = response.json()
    assert response.status_code == body["status"] == status, body
    assert body["error"] == body["detail"]
    for word in words:
        assert word in body["detail"]


@pytest.mark.parametrize("path", ["/huggingface", "/huggingface/tiny"])
@pytest.mark.parametrize("body", [{"content": IMAGE}, {"json": as_json()}], ids=["raw", "json"])
def test_classes_have_their_mean_confidence_and_mask(client, path, body):
    response = client.post(path, **body, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    expected = post(client, thirds()).json()
    assert response.headers["x-calibrator"] == expected["calibration"]["calibrator"]
    segments = response.json()
    assert [each["label"] for each in segments] == ["class-0", "class-1", "class-2"]
    for index, (segment, present) in enumerate(zip(segments, expected["classes"], strict=True)):
        assert segment.keys() == {"label", "score", "mask"}
        assert segment["score"] == present["mean_confidence"]
        mask = decoded(base64.b64decode(segment["mask"]))
        assert mask.mode == "L"
        assert (np.asarray(mask) == np.where(index == THIRDS_MASK, 255, 0)).all()


def test_options_are_taken_from_the_query_and_the_parameters(client):
    plain = client.post("/huggingface?calibrator=none", content=IMAGE)
    assert plain.headers["x-calibrator"] == "none"
    scores = [each["score"] for each in plain.json()]
    threshold = (min(scores) + max(scores)) / 2
    kept = client.post(
        "/huggingface?calibrator=none&threshold=1", json=as_json(threshold=threshold)
    )
    assert [each["score"] for each in kept.json()] == [s for s in scores if s >= threshold]
    abstained = client.post("/huggingface", json=as_json(min_confidence=1))
    assert abstained.json() == []


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/huggingface", {"content": b"no image"}, 400, ["expected"]),
        ("/huggingface", {"json": {"inputs": "?"}}, 400, ["inputs: expected an image in base64"]),
        ("/huggingface", {"json": {}}, 422, ["inputs: Field required"]),
        ("/huggingface", {"json": as_json(mask_threshold=0.5)}, 422, ["mask_threshold"]),
        ("/huggingface", {"json": as_json(subtask="panoptic")}, 422, ["subtask", "'semantic'"]),
        ("/huggingface?min_confidence=.5&max_error=.1", {"content": IMAGE}, 422, ["at most one"]),
        ("/huggingface", {"json": as_json(max_error=0.1)}, 409, ["max_error=0.1"]),
        ("/huggingface/gone", {"content": IMAGE}, 404, ["gone"]),
    ],
)
def test_problems_have_the_key_error(client, path, body, status, words):
    assert_protocol_problem(client.post(path, **body), status, *words)
    assert_serves(client)


def test_api_token_is_required_where_tokens_are_set(make_client):
    client = make_client(api_tokens=("secret-1",))
    assert_protocol_problem(client.post("/huggingface", content=IMAGE), 401, "bearer token")
    headers = {"Authorization": "Bearer secret-1"}
    assert client.post("/huggingface", content=IMAGE, headers=headers).status_code == 200
