"""`GET /models` lists the served models."""

import hashlib
from pathlib import Path

from app.inference.model_card import read_model_folder
from app.storage.artifacts import ArtifactStore
from tests.conftest import MakeClient
from tests.factories.models import write_card, write_onnx_model
from tests.factories.service import assert_problem, assert_serves, post, publish_temperature, thirds


def test_list_describes_every_model(client, shared_folder: Path):
    body = client.get("/models").json()
    weights = (shared_folder / "models" / "tiny" / "model.onnx").read_bytes()
    (model,) = body["models"]

    assert body["refused"] == {}
    assert model["name"] == "tiny"
    assert model["title"] == "Tiny tiny"
    assert model["license"] == "CC0-1.0"
    assert model["sha256"] == read_model_folder(shared_folder / "models" / "tiny").sha256
    assert model["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert model["num_classes"] == 3
    assert model["input"]["multiple_of"] == 2
    assert model["input"]["size"] == "native"
    active = ArtifactStore(shared_folder / "artifacts").active_id("tiny")
    assert model["active_calibrator"] == active
    assert model["metrics"] == {}
    assert model["warnings"] == []


def test_classes_have_id_name_and_color(client):
    classes = client.get("/models/tiny").json()["classes"]

    assert [list(entry) for entry in classes] == [["id", "name", "color"]] * 3
    assert [entry["id"] for entry in classes] == [0, 1, 2]
    assert [entry["name"] for entry in classes] == ["class-0", "class-1", "class-2"]
    assert classes[0]["color"] == "#000000"


def test_one_model_is_described_as_in_the_list(client):
    assert client.get("/models/tiny").json() == client.get("/models").json()["models"][0]


def test_metrics_are_those_of_the_model_card(make_client: MakeClient, models_dir: Path):
    write_onnx_model(models_dir, "rated", metrics={"miou_val": 0.66, "parameters": 9})

    assert make_client().get("/models/rated").json()["metrics"] == {
        "miou_val": 0.66,
        "parameters": 9,
    }


def test_model_of_huge_logits_is_served_with_a_warning(
    make_client: MakeClient, models_dir: Path, caplog
):
    write_onnx_model(models_dir, "huge", std=[1e-6, 1e-6, 1e-6])
    (warning,) = make_client().get("/models/huge").json()["warnings"]

    assert "expected logits of at most 10000, got 4e+06" in warning
    assert f"model huge: {warning}" in caplog.messages


def test_unknown_model_is_not_found(client):
    assert_problem(client.get("/models/other"), 404, "tiny", "other")


def test_active_calibrator_follows_activation(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    client = make_client()
    before = client.get("/models/tiny").json()["active_calibrator"]
    activated = publish_temperature(artifacts_dir, models_dir / "tiny", 2)

    assert before is None
    assert client.get("/models/tiny").json()["active_calibrator"] == activated


def test_invalid_model_folder_is_listed_with_reason_and_others_serve(
    make_client: MakeClient, models_dir: Path
):
    (models_dir / "empty").mkdir()
    (write_onnx_model(models_dir, "garbage") / "model.onnx").write_bytes(b"no network")
    write_card(write_onnx_model(models_dir, "renamed"), name="elsewhere")
    write_onnx_model(
        models_dir, "miscounted", classes=[{"name": n, "color": "#000000"} for n in "abcd"]
    )
    (models_dir / ".hidden").mkdir()
    (models_dir / "README").write_text("not a folder")
    client = make_client()
    body = client.get("/models").json()

    assert [model["name"] for model in body["models"]] == ["tiny"]
    assert body["refused"].keys() == {"empty", "garbage", "renamed", "miscounted"}
    assert "card.toml" in body["refused"]["empty"]
    assert "elsewhere" in body["refused"]["renamed"]
    assert "[1,4,h,w]" in body["refused"]["miscounted"]
    assert_serves(client)
    assert_problem(post(client, thirds(), model="garbage"), 404, "garbage")
