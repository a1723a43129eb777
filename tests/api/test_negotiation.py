"""The media type of a response follows `Accept` and `output`."""

import pytest

from app.api.segment import choose_media_type
from tests.factories.service import assert_problem, post, thirds

JSON, PNG, NPZ = "application/json", "image/png", "application/x-npz"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "output", "kind"),
    [
        ("*/*", None, JSON),
        ("application/json", None, JSON),
        ("application/*", None, JSON),
        ("image/png", None, PNG),
        ("image/*", None, PNG),
        ("IMAGE/PNG", None, PNG),
        ("application/x-npz", None, NPZ),
        ("image/png;q=0.5, application/json", None, JSON),
        ("image/png, application/json;q=0.5", None, PNG),
        ("application/json;q=0, */*", None, PNG),
        ("text/html, application/json", None, JSON),
        (BROWSER, None, JSON),
        # A caller that names an image and takes anything gets the image.
        ("*/*", "overlay", PNG),
        (BROWSER, "overlay", PNG),
        ("image/*", "heatmap", PNG),
        ("application/json", "overlay", JSON),
        ("application/x-npz", "overlay", NPZ),
    ],
)
def test_answer_follows_accept_and_output(client, accept, output, kind):
    query = {"output": output} if output else {}
    response = post(client, thirds(), {"Accept": accept}, **query)

    assert response.status_code == 200
    assert response.headers["content-type"] == kind


def test_missing_accept_header_accepts_anything():
    assert choose_media_type("", None) == JSON
    assert choose_media_type("", "mask") == PNG


def test_invalid_weight_counts_as_1():
    assert choose_media_type("image/png;q=much, application/json;q=0.9", None) == PNG


@pytest.mark.parametrize(
    "accept", ["text/html", "image/jpeg", "*/*;q=0", "nonsense", "image/gif,text/*"]
)
def test_unsupported_media_type_is_rejected(client, accept):
    assert_problem(post(client, thirds(), {"Accept": accept}), 406, accept, JSON, PNG, NPZ)


def test_several_accept_headers_count_as_one(client):
    response = client.post(
        "/segment",
        content=b"",
        headers=[("Accept", "text/html"), ("Accept", "text/plain"), ("Content-Type", "image/png")],
    )
    assert_problem(response, 406, "text/html, text/plain")


def test_problem_ignores_accept_header(client):
    assert_problem(post(client, b"no image", {"Accept": "image/png"}), 400)
