"""What must hold of a service's folder whatever has happened to it."""

import json
from pathlib import Path

from app.inference.model_card import read_model_folder
from app.storage.artifacts import ArtifactStore


def assert_whole(folder: Path) -> str:
    """Every version of `tiny` loads, the active one among them, which is given."""
    store = ArtifactStore(folder / "artifacts")
    sha256 = read_model_folder(folder / "models" / "tiny").sha256
    active = store.active_id("tiny")
    listed = [manifest.id for manifest in store.versions("tiny")]
    assert active in listed
    for version in listed:
        assert store.load("tiny", version, sha256).manifest.id == version
        assert store.report("tiny", version)
    return active


def assert_clean(folder: Path) -> None:
    """Once a store has been opened for service, nothing of a crash is left."""
    ArtifactStore(folder / "artifacts").recover()
    assert_nothing_half_written(folder)


def assert_nothing_half_written(folder: Path) -> None:
    """Nothing lies about, and the history's last line names what is active."""
    store, tiny = ArtifactStore(folder / "artifacts"), folder / "artifacts" / "tiny"
    assert sorted(path.name for path in tiny.glob(".*")) == [".lock"]
    versions = sorted(path.name for path in tiny.iterdir() if path.is_dir())
    assert versions == sorted(manifest.id for manifest in store.versions("tiny"))
    assert history(folder)[-1]["calibrator"] == store.active_id("tiny")


def history(folder: Path) -> list[dict[str, str]]:
    """The lines of a history, which are whole."""
    text = (folder / "artifacts" / "tiny" / "history.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]
