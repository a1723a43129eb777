"""Models are reloaded without a restart: what changed is loaded, a bad folder is refused."""

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from tests.api.test_server import serving
from tests.conftest import MakeClient
from tests.factories.jobs import wait_for
from tests.factories.models import write_card, write_endless_model, write_onnx_model
from tests.factories.service import (
    RED,
    SATURATED_AT_2,
    WHITE,
    assert_problem,
    assert_serves,
    post,
    publish_temperature,
    solid,
    wait_until_ready,
)

TOKEN = "a token for tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client(admin_token=TOKEN, default_model="tiny")


def reload(client: TestClient | httpx2.Client) -> dict[str, object]:
    answer = client.post("/models/reload", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    report: dict[str, object] = answer.json()
    return report


def test_nothing_changed(client: TestClient):
    assert reload(client) == {
        "loaded": [], "unchanged": ["tiny"], "removed": [], "refused": {}, "served": ["tiny"]
    }  # fmt: skip


def test_reload_needs_the_admin_token(client: TestClient):
    assert_problem(client.post("/models/reload"), 401)


def test_new_folder_is_served_and_a_missing_one_is_not(client: TestClient, models_dir: Path):
    write_onnx_model(models_dir, "other", num_classes=5)
    assert_problem(post(client, WHITE, model="other"), 404)

    assert reload(client)["loaded"] == ["other"]
    assert post(client, WHITE, model="other").status_code == 200

    shutil.rmtree(models_dir / "other")
    assert reload(client)["removed"] == ["other"]
    assert_problem(post(client, WHITE, model="other"), 404, "other")
    assert_serves(client)


def test_bad_folder_is_refused_by_reason_while_the_earlier_model_serves(
    client: TestClient, models_dir: Path
):
    (models_dir / "tiny" / "model.onnx").write_bytes(b"no network")
    answer = reload(client)

    assert answer["loaded"] == answer["unchanged"] == []
    assert answer["served"] == ["tiny"]
    refused = answer["refused"]
    assert isinstance(refused, dict)
    assert "tiny" in refused
    assert str(models_dir) not in refused["tiny"]
    assert client.get("/models").json()["refused"] == refused
    assert_serves(client)

    shutil.rmtree(models_dir / "tiny")
    write_onnx_model(models_dir, "tiny")
    assert reload(client)["refused"] == client.get("/models").json()["refused"] == {}


def test_default_model_is_not_removed(client: TestClient, models_dir: Path):
    write_onnx_model(models_dir, "other")
    shutil.rmtree(models_dir / "tiny")

    answer = reload(client)
    assert answer["refused"] == {"tiny": "expected the folder of the default model, got none"}
    assert answer["served"] == ["other", "tiny"]
    assert_serves(client)


def test_last_model_is_not_removed(make_client: MakeClient, models_dir: Path):
    client = make_client(admin_token=TOKEN)
    shutil.rmtree(models_dir / "tiny")

    assert reload(client)["refused"] == {
        "tiny": "expected the folder of at least one model, got none"
    }
    assert_serves(client)


def test_changed_texts_of_a_card_keep_the_calibrator(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    client = make_client(admin_token=TOKEN)
    write_card(models_dir / "tiny", title="another title")

    assert reload(client)["loaded"] == ["tiny"]
    answer = post(client, solid(RED))
    assert client.get("/models/tiny").json()["title"] == "another title"
    assert answer.headers["x-calibrator"] == version
    assert answer.json()["mean_confidence"] == pytest.approx(SATURATED_AT_2, abs=1e-3)


def test_changed_network_is_served_without_the_calibrator_of_the_earlier_one(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    client = make_client(admin_token=TOKEN)
    shutil.rmtree(models_dir / "tiny")
    write_onnx_model(models_dir, "tiny", num_classes=4)

    assert reload(client)["loaded"] == ["tiny"]
    assert post(client, WHITE).headers["x-calibrator"] == "none"
    assert len(client.get("/models/tiny").json()["classes"]) == 4


def test_running_request_keeps_its_model(make_server, models_dir: Path):
    shutil.rmtree(models_dir / "tiny")
    write_endless_model(models_dir, "tiny")
    url = make_server(admin_token=TOKEN, request_timeout_s=12)
    with (
        httpx2.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(post, client, WHITE)
        wait_for(
            lambda: "segcal_requests_running 1.0" in client.get("/metrics").text, "the request"
        )
        shutil.rmtree(models_dir / "tiny")
        write_onnx_model(models_dir, "tiny")
        assert reload(client)["loaded"] == ["tiny"]
        assert post(client, WHITE).status_code == 200
        assert not running.done()
        assert_problem(running.result(), 503, "12 s")


def test_hangup_reloads(tmp_path: Path):
    write_onnx_model(tmp_path / "models", "tiny")
    with serving(tmp_path, DEFAULT_MODEL="tiny") as server:
        server.first_answer("/healthz")
        wait_until_ready(server.client)
        write_onnx_model(tmp_path / "models", "other")
        (tmp_path / "models" / "bad").mkdir()
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: post(server.client, WHITE, model="other").status_code == 200, "the model")

        assert list(server.client.get("/models").json()["refused"]) == ["bad"]
        assert "refused model bad: " in server.log.read_text()
        assert_serves(server.client)
