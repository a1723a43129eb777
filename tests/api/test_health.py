"""`/healthz` and `/readyz`: liveness and readiness."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from tests.conftest import MakeClient
from tests.factories.models import write_onnx_model
from tests.factories.service import assert_problem, post, thirds


def test_ready_service_is_alive_and_ready(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_service_whose_models_are_loading_is_alive_but_not_ready(make_settings):
    client = TestClient(create_app(make_settings()))  # not entered: its lifespan never begins

    assert client.get("/healthz").status_code == 200
    assert_problem(client.get("/readyz"), 503, "loading")
    assert_problem(client.get("/models"), 503, "loading")
    assert_problem(post(client, thirds()), 503, "loading")


def test_draining_service_is_alive_but_not_ready(make_client: MakeClient):
    client = make_client()
    answered = post(client, thirds()).json()
    client.app.state.segcal.readiness.draining.set()  # type: ignore[attr-defined]

    assert client.get("/healthz").status_code == 200
    assert_problem(client.get("/readyz"), 503, "shutting down")
    assert_problem(post(client, thirds()), 503, "shutting down")
    assert client.get(answered["links"]["mask"]).status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/models"])
def test_readiness_gives_the_reason_where_no_model_loads(make_settings, tmp_path: Path, path):
    models = tmp_path / "broken"
    (write_onnx_model(models, "garbage") / "model.onnx").write_bytes(b"no network")
    with TestClient(create_app(make_settings(models_dir=models))) as client:
        while "loading" in (answer := client.get(path)).text:
            pass

        assert_problem(answer, 503, "garbage")
        assert client.get("/healthz").status_code == 200
