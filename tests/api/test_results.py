"""`GET /results/{id}/…` returns the arrays and images of an earlier response."""

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.conftest import MakeClient
from tests.factories.service import (
    THIRDS_MASK,
    ImageArray,
    assert_problem,
    decoded,
    post,
    solid,
    thirds,
)

FILES = ("mask.png", "confidence.png", "heatmap.png", "overlay.png", "data.npz")


def result_of(client: TestClient, image: ImageArray, **query: str | float) -> str:
    return post(client, image, **query).headers["x-result-id"]


def test_mask_equals_that_of_the_response(client):
    answered = post(client, thirds(), {"Accept": "image/png"})
    kept = client.get(f"/results/{answered.headers['x-result-id']}/mask.png")

    assert kept.headers["content-type"] == "image/png"
    assert kept.content == answered.content


def test_mask_keeps_abstained_pixels(client):
    name = result_of(client, thirds(), min_confidence=1)
    kept = decoded(client.get(f"/results/{name}/mask.png").content)

    assert (np.asarray(kept) == 255).all()


def test_confidence_has_eight_bits_by_default(client):
    name = result_of(client, solid((255, 0, 0)), calibrator="none")
    image = decoded(client.get(f"/results/{name}/confidence.png").content)

    assert image.mode == "L"
    assert (np.asarray(image) == 246).all()  # round(255 * 0.964664)


def test_confidence_has_sixteen_bits_on_demand(client):
    name = result_of(client, solid((255, 0, 0)), calibrator="none")
    response = client.get(f"/results/{name}/confidence.png", params={"depth": 16})
    image = decoded(response.content)

    assert image.mode == "I;16"
    assert (np.asarray(image) == 63219).all()  # round(65535 * 0.964664)


@pytest.mark.parametrize("depth", ["7", "0", "sixteen", ""])
def test_confidence_of_another_depth_is_rejected(client, depth):
    name = result_of(client, thirds())
    response = client.get(f"/results/{name}/confidence.png", params={"depth": depth})

    assert_problem(response, 422, "depth")


def test_heatmap_and_overlay_are_rgb_or_indexed_at_the_images_size(client):
    name = result_of(client, thirds())
    for file in ("heatmap.png", "overlay.png"):
        image = decoded(client.get(f"/results/{name}/{file}").content)
        assert image.size == (12, 8)
        assert image.mode in ("P", "RGB")


def test_arrays_are_mask_and_confidence(client):
    name = result_of(client, thirds())
    response = client.get(f"/results/{name}/data.npz")

    assert response.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(response.content), allow_pickle=False) as data:
        assert (data["mask"] == THIRDS_MASK).all()
        assert data["confidence"].dtype == np.float16


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["0" * 24, "..", "%2e%2e"])
def test_unknown_result_is_not_found(client, name, file):
    assert_problem(client.get(f"/results/{name}/{file}"), 404)


@pytest.mark.parametrize("file", ["depth.png", "mask.jpg", "mask", "data.npy", ""])
def test_unknown_artefact_of_a_result_is_not_found(client, file):
    name = result_of(client, thirds())

    assert_problem(client.get(f"/results/{name}/{file}"), 404)


@pytest.mark.parametrize("settings", [{"result_ttl_s": 0}, {"result_bytes": 0}])
def test_result_beyond_time_or_budget_is_not_found(make_client: MakeClient, settings):
    client = make_client(**settings)
    response = post(client, thirds())

    assert response.status_code == 200
    for link in response.json()["links"].values():
        assert_problem(client.get(link), 404, "expired")


def test_oldest_result_is_evicted_first(make_client: MakeClient):
    client = make_client(result_bytes=60_000)  # five bytes a pixel and the upload: two fit
    first, second, third = (result_of(client, solid((255, 0, 0), 64, 80)) for _ in range(3))

    assert client.get(f"/results/{first}/mask.png").status_code == 404
    assert client.get(f"/results/{second}/mask.png").status_code == 200
    assert client.get(f"/results/{third}/mask.png").status_code == 200
