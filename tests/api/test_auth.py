"""Requests to segment need one of `API_TOKENS` where these are set."""

import pytest

from tests.conftest import MakeClient
from tests.factories.service import assert_problem, post, thirds


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def protected(make_client: MakeClient):
    return make_client(api_tokens="alpha, beta")


def test_service_without_tokens_is_open(client):
    assert post(client, thirds()).status_code == 200
    assert post(client, thirds(), bearer("whatever")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("gamma"),
        bearer(""),
        bearer("alpha, beta"),
        bearer("ALPHA"),
        {"Authorization": "alpha"},
        {"Authorization": "Basic alpha"},
        {"Authorization": "Bearer \xe4lpha"},
    ],
)  # fmt: skip
def test_request_without_a_known_token_is_rejected(protected, headers):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = protected.post("/segment", content=b"", headers={"Content-Type": "image/png"} | raw)

    assert_problem(response, 401, "bearer token")
    assert response.headers["www-authenticate"] == "Bearer"
    for word in ("alpha", "beta"):
        assert word not in response.text


@pytest.mark.parametrize("header", ["Bearer alpha", "Bearer beta", "bearer alpha"])
def test_request_with_a_known_token_is_served(protected, header):
    assert post(protected, thirds(), {"Authorization": header}).status_code == 200


def test_results_require_a_token(protected):
    link = post(protected, thirds(), bearer("alpha")).json()["links"]["mask"]

    assert_problem(protected.get(link), 401)
    assert protected.get(link, headers=bearer("beta")).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/models", "/models/tiny", "/docs"])
def test_service_information_needs_no_token(protected, path):
    assert protected.get(path).status_code == 200


def test_openapi_marks_operations_that_need_a_token(client):
    paths = client.get("/openapi.json").json()["paths"]

    assert paths["/segment"]["post"]["security"] == [{"api_token": []}]
    assert paths["/calibrate"]["post"]["security"] == [{"admin_token": []}]
    assert "security" not in paths["/calibrate"]["get"]


def test_token_is_checked_before_arguments(protected):
    assert_problem(post(protected, thirds(), min_confidence=7), 401)
