"""`API_TOKENS`: who may segment."""

import pytest

from tests.conftest import MakeClient
from tests.factories.service import assert_problem, post, thirds


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def guarded(make_client: MakeClient):
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
def test_caller_without_a_token_of_ours_is_refused(guarded, headers):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = guarded.post("/segment", content=b"", headers={"Content-Type": "image/png"} | raw)

    assert_problem(response, 401, "bearer token")
    assert response.headers["www-authenticate"] == "Bearer"
    for word in ("alpha", "beta"):
        assert word not in response.text


@pytest.mark.parametrize("header", ["Bearer alpha", "Bearer beta", "bearer alpha"])
def test_caller_with_a_token_is_served(guarded, header):
    assert post(guarded, thirds(), {"Authorization": header}).status_code == 200


def test_results_are_guarded_like_the_answers_they_keep(guarded):
    link = post(guarded, thirds(), bearer("alpha")).json()["links"]["mask"]

    assert_problem(guarded.get(link), 401)
    assert guarded.get(link, headers=bearer("beta")).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/models", "/models/tiny", "/docs"])
def test_what_tells_about_the_service_stays_open(guarded, path):
    assert guarded.get(path).status_code == 200


def test_openapi_tells_which_calls_carry_a_token(client):
    paths = client.get("/openapi.json").json()["paths"]

    assert paths["/segment"]["post"]["security"] == [{"api_token": []}]
    assert paths["/calibrate"]["post"]["security"] == [{"admin_token": []}]
    assert "security" not in paths["/calibrate"]["get"]


def test_token_is_asked_for_before_the_arguments_are_judged(guarded):
    assert_problem(post(guarded, thirds(), min_confidence=7), 401)
