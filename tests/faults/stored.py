"""Assert the invariants of a service's folder, which hold after any crash."""

import json
from pathlib import Path

from app.inference.model_card import read_model_folder
from app.storage.artifacts import ArtifactStore


def assert_versions_load(folder: Path) -> str:
    """Assert that every version of `tiny` loads, and return the id of the active one."""
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
    """Assert that the recovery at start removes all traces of a crash."""
    ArtifactStore(folder / "artifacts").recover()
    assert_no_partial_files(folder)


def assert_no_partial_files(folder: Path) -> None:
    """Assert that no temporary file exists and that the history ends with the active version."""
    store, tiny = ArtifactStore(folder / "artifacts"), folder / "artifacts" / "tiny"
    assert sorted(path.name for path in tiny.glob(".*")) == [".lock"]
    versions = sorted(path.name for path in tiny.iterdir() if path.is_dir())
    assert versions == sorted(manifest.id for manifest in store.versions("tiny"))
    assert history(folder)[-1]["calibrator"] == store.active_id("tiny")


def history(folder: Path) -> list[dict[str, str]]:
    """Read the entries of a history, and assert that its last line is complete."""
    text = (folder / "artifacts" / "tiny" / "history.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]
