"""Requests to segment need one of `API_TOKENS` where these are set."""

import pytest

from tests.conftest import MakeClient
from tests.factories.service import assert_problem, post, publish_temperature, thirds


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ADMIN = "the-admin-token"
READ = [
    ("GET", "/calibrate"), ("GET", "/calibrate/x"), ("GET", "/calibrate/x/events"),
    ("GET", "/calibrators"), ("GET", "/calibrators/x"), ("GET", "/calibrators/x/report"),
    ("GET", "/calibrators/x/reliability.svg"), ("GET", "/calibrators/x/archive"),
]  # fmt: skip


@pytest.fixture
def protected(make_client: MakeClient):
    return make_client(api_tokens="alpha, beta", admin_token=ADMIN)


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
    assert paths["/calibrate"]["get"]["security"] == [{"api_token": []}]
    assert paths["/metrics"]["get"]["security"] == [{"metrics_token": []}]
    for method, path in READ:
        template = path.replace("/x", "/{job}" if "calibrate/" in path else "/{calibrator}")
        assert paths[template][method.lower()]["security"] == [{"api_token": []}], path


@pytest.mark.parametrize(("method", "path"), READ)
def test_reading_calibrators_and_jobs_requires_a_token(protected, method, path):
    for headers in ({}, bearer("gamma")):
        assert_problem(protected.request(method, path, headers=headers), 401, "bearer token")
    expected = 200 if path in ("/calibrate", "/calibrators") else 404
    for token in ("beta", ADMIN):
        response = protected.request(method, path, headers=bearer(token))
        assert response.status_code == expected, response.text


def test_every_operation_but_the_public_ones_requires_a_token(protected):
    public = {"/healthz", "/readyz", "/models", "/models/{model}"}
    public |= {"/v2", "/v2/health/live", "/v2/health/ready"}
    for path, operations in protected.get("/openapi.json").json()["paths"].items():
        for method in operations:
            response = protected.request(method.upper(), path)
            assert (response.status_code == 401) == (path not in public), (method, path)


def test_archive_is_read_with_a_token_only(make_client, models_dir, artifacts_dir):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    path = f"/calibrators/{version}/archive"
    protected = make_client(api_tokens="alpha")

    assert_problem(protected.get(path), 401)
    assert protected.get(path, headers=bearer("alpha")).status_code == 200


def test_an_api_token_changes_no_calibrator(protected):
    paths = protected.get("/openapi.json").json()["paths"]
    changes = [
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if path.startswith(("/calibrat", "/models")) and method != "get"
    ]
    assert len(changes) == 6
    for method, path in (*changes, ("GET", "/models/tiny/export")):
        assert_problem(protected.request(method, path, headers=bearer("alpha")), 401)


@pytest.mark.parametrize(
    ("settings", "accepted", "rejected"),
    [
        ({}, ["", "any"], []),
        ({"api_tokens": "alpha"}, ["alpha", ADMIN], ["", "other"]),
        ({"metrics_token": "for-metrics"}, ["for-metrics", ADMIN], ["", "alpha"]),
        (
            {"api_tokens": "alpha", "metrics_token": "for-metrics"},
            ["for-metrics", ADMIN],
            ["", "alpha"],
        ),
    ],
)
def test_metrics_have_a_token_of_their_own(make_client, settings, accepted, rejected):
    client = make_client(admin_token=ADMIN, **settings)
    for token in accepted:
        assert client.get("/metrics", headers=bearer(token)).status_code == 200
    for token in rejected:
        assert_problem(client.get("/metrics", headers=bearer(token)), 401)
    if "metrics_token" in settings and "api_tokens" in settings:
        segmented = post(client, thirds(), bearer("for-metrics"))
        assert_problem(segmented, 401)


def test_token_is_checked_before_arguments(protected):
    assert_problem(post(protected, thirds(), min_confidence=7), 401)
