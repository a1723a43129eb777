"""Damage of any stored byte is found at load, reported by name, and stays with its model."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from app.calibration.drift import Reference
from app.errors import ActiveCalibratorError, ArtifactError, NotFoundError
from app.storage.artifacts import ArtifactStore
from app.storage.folder_backend import FolderVersion
from app.storage.manifest import (
    StoredCalibrator,
    read_file,
    read_manifest,
    read_report,
    read_version,
)
from tests.faults.test_backup import command_of
from tests.storage.test_artifacts import SHA, halving, manifest, publish, publish_earlier

BRACKETS = b"[" * 100_000
POINTERS = {
    "a byte above 127": b"2026\xff",
    "nonsense": b"../../etc/passwd",
    "empty": b"",
    "brackets": BRACKETS,
    "no such version": b"20260101T000000Z-temperature-abcdef",
}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def version(store: ArtifactStore, tmp_path: Path) -> Path:
    """Return the folder of a version with all four files."""
    reference = Reference(torch.full((5, 64 + 3), 1 / 64))
    stored = store.publish(manifest(), halving(), {"chosen": "temperature"}, reference)
    return tmp_path / "tiny" / stored.id


def test_manifest_lists_checksums_and_the_id_ends_with_its_own(version):
    text = (version / "manifest.json").read_text()
    files = json.loads(text)["files"]
    without_id = "".join(line for line in text.splitlines(True) if '"id":' not in line)

    assert files == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in version.iterdir()
        if path.name != "manifest.json"
    }
    assert len(files) == 3
    assert version.name.endswith("-" + hashlib.sha256(without_id.encode()).hexdigest()[:12])


def test_commands_of_the_documents_give_the_checksums(version):
    done = subprocess.run(
        ["sh", "-euc", command_of("Damage")], cwd=version, capture_output=True, check=True
    )
    own, *others = (line.split() for line in done.stdout.decode().splitlines())
    assert own[0].startswith(version.name.rpartition("-")[2])
    files = json.loads((version / "manifest.json").read_text())["files"]
    assert {name: digest for digest, name in others} == files


@pytest.mark.parametrize(
    "name", ["manifest.json", "calibrator.safetensors", "report.json", "reference.safetensors"]
)
def test_every_flipped_bit_is_found(store, version, name):
    path = version / name
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError, match=f"^{version.name}: expected"):
            store.load("tiny", version.name, SHA)
    path.write_bytes(whole)
    assert store.load("tiny", version.name, SHA).manifest.id == version.name


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "reference.safetensors"])
@pytest.mark.parametrize("data", [None, b"", BRACKETS], ids=["missing", "empty", "brackets"])
def test_damaged_file_is_reported_by_name_without_a_path(store, version, tmp_path, name, data):
    (version / name).unlink()
    if data is not None:
        (version / name).write_bytes(data)
    for read in (
        lambda: store.load("tiny", version.name, SHA),
        lambda: store.activate("tiny", version.name, "try", by="a test"),
        lambda: store.archive("tiny", version.name),
    ):
        with pytest.raises(ArtifactError, match=f"^{version.name}: expected") as raised:
            read()
        assert str(tmp_path) not in str(raised.value)
    assert store.scan("tiny") == ([], {version.name: str(raised.value)})
    assert store.active_id("tiny") is None


@pytest.mark.parametrize("data", [None, b"", BRACKETS, b"[]"])
def test_damaged_report_of_an_earlier_release_is_reported(store, tmp_path, data):
    earlier = publish_earlier(store, tmp_path)
    path = tmp_path / "tiny" / earlier / "report.json"
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArtifactError, match=earlier):
        store.report("tiny", earlier)


def test_version_of_an_earlier_release_loads_without_checksums(store, tmp_path):
    earlier = publish_earlier(store, tmp_path)
    store.activate("tiny", earlier, "as before", by="a test")

    active = ArtifactStore(tmp_path).active("tiny", SHA)
    assert active is not None
    assert active.manifest.id == earlier
    assert active.manifest.files == {}


def damage_pointer(pointer: Path, name: str) -> None:
    """Replace the pointer `active` by a damaged one, or by a folder."""
    pointer.unlink()
    if name == "a folder":
        pointer.mkdir()
    else:
        pointer.write_bytes(POINTERS[name])


@pytest.mark.parametrize("name", [*POINTERS, "a folder"])
def test_damaged_pointer_is_reported_and_replaced_by_an_activation(store, tmp_path, name):
    version = publish(store)
    store.activate("tiny", version, "better", by="a test")
    damage_pointer(tmp_path / "tiny" / "active", name)

    with pytest.raises(ActiveCalibratorError, match=f"the last whole one is {version}: activate"):
        store.active("tiny", SHA)
    store.recover()
    assert store.load("tiny", version, SHA).manifest.id == version
    store.activate("tiny", version, "restored", by="a test")
    active = store.active("tiny", SHA)
    assert active is not None
    assert active.manifest.id == version
    assert len(list((tmp_path / "tiny").glob("active.damaged-*"))) == (name == "a folder")


@pytest.mark.parametrize("name", ["a byte above 127", "nonsense", "empty", "a folder"])
def test_no_version_is_deleted_while_the_active_one_is_unknown(store, tmp_path, name):
    version = publish(store)
    store.activate("tiny", version, "better", by="a test")
    damage_pointer(tmp_path / "tiny" / "active", name)
    with pytest.raises(ArtifactError, match=r"^active of tiny: expected"):
        store.delete("tiny", version)
    assert store.load("tiny", version, SHA)


def test_pointer_to_a_version_of_another_model_is_damage(store, tmp_path):
    ours, theirs = publish(store), publish(store, model="wide")
    store.activate("tiny", ours, "better", by="a test")
    (tmp_path / "tiny" / "active").write_text(f"{theirs}\n")

    with pytest.raises(ActiveCalibratorError, match=f"got {theirs}; the last whole one is {ours}"):
        store.active("tiny", SHA)


def test_last_whole_version_is_named_and_not_used(store, tmp_path):
    oldest, previous, unused, active = (
        publish(store, id=f"2026010{day}T000000Z-temperature") for day in (1, 2, 3, 4)
    )
    for version in (oldest, previous, active):
        store.activate("tiny", version, "better", by="a test")
    (tmp_path / "tiny" / active / "report.json").unlink()

    fresh = ArtifactStore(tmp_path)
    expected = re.escape(f"got damage: {active}: expected report.json")
    with pytest.raises(ActiveCalibratorError, match=rf"{expected}.*last whole one is {previous}:"):
        fresh.active("tiny", SHA)
    assert fresh.active_id("tiny") == active
    (tmp_path / "tiny" / previous / "report.json").unlink()
    (tmp_path / "tiny" / oldest / "report.json").unlink()
    with pytest.raises(ActiveCalibratorError, match=f"last whole one is {unused}"):
        ArtifactStore(tmp_path).active("tiny", SHA)
    (tmp_path / "tiny" / unused / "report.json").unlink()
    with pytest.raises(ActiveCalibratorError, match="no other one can be read: fit one"):
        ArtifactStore(tmp_path).active("tiny", SHA)


def test_damage_stays_with_its_model(store, tmp_path):
    ours, theirs = publish(store), publish(store, model="wide")
    store.activate("tiny", ours, "better", by="a test")
    store.activate("wide", theirs, "better", by="a test")
    damage_pointer(tmp_path / "tiny" / "active", "a folder")
    (tmp_path / "tiny" / ours / "manifest.json").write_bytes(BRACKETS)
    (tmp_path / "tiny" / "history.jsonl").write_bytes(BRACKETS + b"\n\xff\n")

    store.recover()
    active = store.active("wide", SHA)
    assert active is not None
    assert active.manifest.id == theirs
    assert store.scan("wide") == ([active.manifest], {})
    with pytest.raises(ActiveCalibratorError):
        store.active("tiny", SHA)


def test_version_deleted_while_it_is_read_is_not_found(store, version):
    files = FolderVersion(version)
    described = read_manifest(files)
    store.delete("tiny", version.name)
    for read in (
        lambda: read_version(files),
        lambda: read_file(files, described, "calibrator.safetensors"),
        lambda: read_report(files, described),
        lambda: store.archive("tiny", version.name),
    ):
        with pytest.raises(NotFoundError, match=version.name):
            read()


def test_version_replaced_and_deleted_while_it_is_read_is_no_damage(store, tmp_path, monkeypatch):
    first, second = publish(store), publish(store)
    store.activate("tiny", first, "better", by="a test")
    load = store.load

    def load_late(model: str, version: str, *hashes: str) -> StoredCalibrator:
        if version == first:
            ArtifactStore(tmp_path).activate("tiny", second, "meanwhile", by="a test")
            ArtifactStore(tmp_path).delete("tiny", first)
        stored: StoredCalibrator = load(model, version, *hashes)
        return stored

    monkeypatch.setattr(store, "load", load_late)
    active = store.active("tiny", SHA)
    assert active is not None
    assert active.manifest.id == second


def test_damaged_version_can_be_deleted(store, tmp_path):
    version = publish(store)
    (tmp_path / "tiny" / version / "manifest.json").write_bytes(BRACKETS)
    store.delete(store.model_of(version), version)

    assert store.scan("tiny") == ([], {})
