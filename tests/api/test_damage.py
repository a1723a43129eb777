"""Damaged artefacts over HTTP: a problem that names them, for their model only."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeClient
from tests.factories.models import write_onnx_model
from tests.factories.service import assert_problem, post, publish_temperature, thirds
from tests.storage.test_damage import BRACKETS

ADMIN = {"Authorization": "Bearer admin-of-this-test"}
FILES = ("manifest.json", "calibrator.safetensors", "report.json")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "missing": Path.unlink,
    "a folder": replace_by_folder,
    "brackets": lambda path: path.write_bytes(BRACKETS),
    "bytes above 127": lambda path: path.write_bytes(b"\xff" * 50),
}


@pytest.fixture
def tiny(models_dir: Path, artifacts_dir: Path) -> tuple[str, str]:
    """Publish two versions of `tiny`, both activated; return their ids, the active one last."""
    first, second = (publish_temperature(artifacts_dir, models_dir / "tiny", t) for t in (2, 3))
    return first, second


# A flipped bit of the pointer names a version that does not exist.
@pytest.mark.parametrize("kind", ["a flipped bit", "a folder", "brackets", "bytes above 127"])
def test_damaged_pointer_is_a_503_that_offers_the_last_version(
    make_client: MakeClient, artifacts_dir, tmp_path, tiny, kind
):
    DAMAGE[kind](artifacts_dir / "tiny" / "active")
    client = make_client(admin_token="admin-of-this-test")

    body = assert_problem(post(client, thirds()), 503, "active", tiny[1], "activate")
    assert str(tmp_path) not in str(body)
    assert client.get("/readyz").status_code == 200
    assert post(client, thirds(), calibrator="none").headers["x-calibrator"] == "none"
    assert post(client, thirds(), calibrator=tiny[0]).headers["x-calibrator"] == tiny[0]
    listed = client.get("/calibrators").json()
    assert [entry["active"] for entry in listed["calibrators"]] == [False, False]
    assert listed["damaged"] == {}
    assert client.post(f"/calibrators/{tiny[1]}/activate", headers=ADMIN).status_code == 200
    assert post(client, thirds()).headers["x-calibrator"] == tiny[1]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_active_version_is_a_503_that_offers_the_last_whole_one(
    make_client: MakeClient, artifacts_dir, tmp_path, tiny, kind, name
):
    previous, active = tiny
    DAMAGE[kind](artifacts_dir / "tiny" / active / name)
    client = make_client(admin_token="admin-of-this-test")

    body = assert_problem(post(client, thirds()), 503, active, previous, "activate")
    assert str(tmp_path) not in str(body)
    assert post(client, thirds(), calibrator="none").headers["x-calibrator"] == "none"
    by_id = assert_problem(post(client, thirds(), calibrator=active), 409, active)
    assert str(tmp_path) not in str(by_id)
    listed = client.get("/calibrators").json()
    assert [entry["id"] for entry in listed["calibrators"]] == [previous]
    assert list(listed["damaged"]) == [active]
    assert_problem(client.get(f"/calibrators/{active}/archive"), 409, active)
    again = client.post(f"/calibrators/{active}/activate", headers=ADMIN)
    assert_problem(again, 409, active)
    assert client.post(f"/calibrators/{previous}/activate", headers=ADMIN).status_code == 200
    assert post(client, thirds()).headers["x-calibrator"] == previous
    assert client.delete(f"/calibrators/{active}", headers=ADMIN).status_code == 204


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_report_is_a_409(make_client: MakeClient, artifacts_dir, tiny, kind):
    DAMAGE[kind](artifacts_dir / "tiny" / tiny[0] / "report.json")
    client = make_client()

    for way in ("report", "reliability.svg"):
        assert_problem(client.get(f"/calibrators/{tiny[0]}/{way}"), 409, tiny[0])


def test_damage_of_one_model_never_touches_another(
    make_client: MakeClient, models_dir, artifacts_dir, tiny
):
    write_onnx_model(models_dir, "wide")
    others = publish_temperature(artifacts_dir, models_dir / "wide", 2)
    replace_by_folder(artifacts_dir / "tiny" / "active")
    DAMAGE["brackets"](artifacts_dir / "tiny" / tiny[1] / "manifest.json")
    DAMAGE["brackets"](artifacts_dir / "tiny" / "history.jsonl")
    client = make_client(default_model="tiny")

    assert_problem(post(client, thirds()), 503, "tiny", tiny[0])
    assert post(client, thirds(), model="wide").headers["x-calibrator"] == others
    listed = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert tiny[0] in listed["tiny"]["calibrator_damage"]
    assert listed["tiny"]["active_calibrator"] is None
    assert listed["wide"]["calibrator_damage"] is None
    assert listed["wide"]["active_calibrator"] == others
    versions = client.get("/calibrators", params={"model": "wide"}).json()
    assert [entry["active"] for entry in versions["calibrators"]] == [True]
    assert versions["damaged"] == {}
