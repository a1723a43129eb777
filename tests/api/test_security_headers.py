"""Every response has headers that limit what a browser does with it; nothing internal leaks."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.inference.model_card import read_model_folder
from app.main import create_app
from app.recalibration import calibrate
from app.schemas.fit import FitOptions
from tests.conftest import MakeClient
from tests.factories.models import write_card
from tests.factories.service import assert_problem, post, solid, thirds, wait_until_ready
from tests.test_recalibration import labelled

PATHS = [
    "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/models", "/calibrators",
    "/calibrate", "/static/page.js", "/static/samples/street.jpg", "/docs/assets/swagger-ui.css",
    "/nothing", "/models/none",
    "/calibrators/none/reliability.svg",
]  # fmt: skip


def assert_secure(headers: Mapping[str, str]) -> None:
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src '")


@pytest.mark.parametrize("path", PATHS)
def test_every_response_has_security_headers(client, path):
    headers = client.get(path).headers
    assert_secure(headers)
    assert "set-cookie" not in headers


def test_segmentation_and_rejected_one_have_security_headers(client):
    segmented = post(client, thirds())
    assert_secure(segmented.headers)
    assert_secure(client.get(segmented.json()["links"]["mask"]).headers)
    assert_secure(post(client, b"no image").headers)


def test_internal_error_has_security_headers(make_settings):
    app = create_app(make_settings())

    def crash() -> None:
        raise RuntimeError("a secret")

    app.add_api_route("/crash", crash)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        response = client.get("/crash")
        assert_problem(response, 500)
        assert_secure(response.headers)


def test_documentation_runs_only_its_own_scripts(client):
    response = client.get("/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (allowed,) = re.findall(r"script-src ([^;]*)", response.headers["content-security-policy"])

    assert allowed.split() == ["'self'", f"'sha256-{digest}'"]


def test_diagram_runs_nothing_and_is_the_same_each_time(make_client: MakeClient, models_dir):
    client = make_client()
    state = client.app.state.segcal  # type: ignore[attr-defined]
    folder = read_model_folder(models_dir / "tiny")
    done = calibrate(folder, labelled(3), state.artifacts, FitOptions(method="temperature"))
    first, second = (client.get(f"/calibrators/{done.manifest.id}/reliability.svg") for _ in "ab")
    state.diagrams._kept.clear()
    drawn_again = client.get(f"/calibrators/{done.manifest.id}/reliability.svg")

    assert first.status_code == 200, first.text
    assert first.content == second.content == drawn_again.content
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; sandbox;")
    threads = {thread.name for thread in state.diagrams._thread._threads}
    assert len(threads) == 1


@pytest.mark.parametrize("path", ["/calibrators/", "/docs/", "/static", "/models/", "/", "/x"])
def test_host_header_is_not_repeated(client, path):
    response = client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)

    assert "evil" not in response.text
    assert "evil" not in str(response.headers)
    assert response.status_code in (200, 404)


def preflight(client: TestClient, origin: str):
    return client.options(
        "/segment", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )


def test_other_origins_are_not_allowed_by_default(client):
    assert preflight(client, "https://a.example").status_code == 405
    response = client.get("/models", headers={"Origin": "https://a.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_configured_origins_are_allowed(make_client: MakeClient):
    client = make_client(cors_origins="https://a.example, https://b.example")

    for origin in ("https://a.example", "https://b.example"):
        assert preflight(client, origin).headers["access-control-allow-origin"] == origin
    response = post(client, solid((255, 0, 0)), {"Origin": "https://a.example"})
    assert response.headers["access-control-allow-origin"] == "https://a.example"
    assert "X-Calibrator" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers
    assert "access-control-allow-origin" not in preflight(client, "https://c.example").headers


def test_refused_models_are_listed_without_the_path_of_their_folder(
    make_client: MakeClient, models_dir: Path
):
    for name in ("noise", "folder"):
        (models_dir / name).mkdir()
        write_card(models_dir / name)
    (models_dir / "noise" / "model.onnx").write_bytes(b"noise")
    (models_dir / "folder" / "card.toml").unlink()
    (models_dir / "folder" / "card.toml").mkdir()
    response = make_client().get("/models")

    assert sorted(response.json()["refused"]) == ["folder", "noise"]
    assert str(models_dir) not in response.text
