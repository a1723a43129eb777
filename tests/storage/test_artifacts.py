"""Published versions are complete and the active version loads, at any time."""

import io
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import safetensors.torch
import torch

from app.calibration.drift import Reference
from app.calibration.methods.temperature import Temperature
from app.errors import ArgumentError, ArtifactError, ConflictError, NotFoundError, StorageError
from app.schemas.calibrator import CertifiedThreshold, Manifest
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import new_id

SHA = "a" * 64
LOGITS = torch.tensor([[4.0, 0.0, 0.0], [1.0, 2.0, 3.0]])


def manifest(**changes: object) -> Manifest:
    plain = Manifest(
        id=new_id("temperature"),
        model="tiny",
        model_sha256=SHA,
        method="temperature",
        num_classes=3,
        fitted_at="2026-01-02T03:04:05Z",
        images=4,
        pixels=400,
        ece_before=0.25,
        ece_after=0.125,
        seed=7,
        note=f"by the test {secrets.token_hex(4)}",  # equal files would be one version
        summary={"temperature": 2.0},
    )
    return plain.model_copy(update=changes)


def halving() -> Temperature:
    calibrator = Temperature(3)
    calibrator.beta.fill_(0.5)
    return calibrator


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def publish(store: ArtifactStore, **changes: object) -> str:
    return store.publish(manifest(**changes), halving(), {"chosen": "temperature"}).id


def publish_earlier(store: ArtifactStore, root: Path) -> str:
    """Publish a version in the form of earlier releases: without checksums, with a random id."""
    published = root / "tiny" / publish(store)
    version = f"{published.name.rpartition('-')[0]}-{secrets.token_hex(3)}"
    entries = json.loads((published / "manifest.json").read_text()) | {"id": version}
    del entries["files"]
    (published / "manifest.json").write_text(json.dumps(entries))
    published.rename(published.with_name(version))
    return version


def test_published_version_loads_unchanged(store, tmp_path):
    described = store.publish(manifest(), halving(), {"chosen": "temperature"})
    stored = ArtifactStore(tmp_path).load("tiny", described.id, SHA)

    assert stored.manifest == described
    assert torch.equal(stored.calibrator(LOGITS), (LOGITS / 2).log_softmax(1))
    assert store.report("tiny", described.id) == {"chosen": "temperature"}
    assert sorted(path.name for path in (tmp_path / "tiny" / described.id).iterdir()) == [
        "calibrator.safetensors", "manifest.json", "report.json",
    ]  # fmt: skip


def test_id_is_found_in_the_form_of_a_query(store):
    version = publish(store, id=new_id("selective+temperature"))

    assert parse_qs(f"calibrator={version}") == {"calibrator": [version]}
    assert store.find(version).id == version


def test_thresholds_and_reference_are_stored_with_a_version(store, tmp_path):
    level = CertifiedThreshold(0.1, 0.75, 0.1, 0.9, 0.06, 40)
    reference = Reference(torch.full((5, 64 + 3), 1 / 64))
    described = store.publish(
        manifest(thresholds=(level,)), halving(), {"chosen": "temperature"}, reference
    )
    stored = ArtifactStore(tmp_path).load("tiny", described.id, SHA)

    assert stored.manifest.thresholds == (level,)
    assert stored.reference is not None
    assert torch.equal(stored.reference.images, reference.images)
    with zipfile.ZipFile(io.BytesIO(store.archive("tiny", described.id))) as archive:
        assert f"{described.id}/reference.safetensors" in archive.namelist()


def test_manifest_without_thresholds_is_read(store, tmp_path):
    version = publish_earlier(store, tmp_path)
    path = tmp_path / "tiny" / version / "manifest.json"
    older = json.loads(path.read_text())
    del older["thresholds"]
    path.write_text(json.dumps(older))
    stored = ArtifactStore(tmp_path).load("tiny", version, SHA)

    assert stored.manifest.thresholds == ()
    assert stored.reference is None


@pytest.mark.parametrize(
    "images",
    [torch.zeros(5, 3), torch.zeros(67), torch.full((5, 67), math.nan), None],
    ids=["too narrow", "one row", "NaN", "not a file of ours"],
)
def test_damaged_reference_is_rejected(store, tmp_path, images):
    version = publish_earlier(store, tmp_path)
    path = tmp_path / "tiny" / version / "reference.safetensors"
    path.write_bytes(b"{" if images is None else safetensors.torch.save({"images": images}))
    with pytest.raises(ArtifactError, match=f"{version}: expected"):
        store.load("tiny", version, SHA)


def test_loaded_version_is_cached(store):
    version = publish(store)

    assert store.load("tiny", version, SHA) is store.load("tiny", version, SHA)


def test_versions_are_listed_newest_first(store):
    ids = [publish(store, id=f"2026010{day}T000000Z-temperature") for day in (2, 1, 3)]

    assert [m.id for m in store.versions("tiny")] == sorted(ids, reverse=True)


def test_model_without_versions_has_none_and_nothing_active(store):
    assert store.versions("tiny") == []
    assert store.active_id("tiny") is None


def test_activation_switches_the_pointer_and_is_recorded(store, tmp_path):
    first, second = publish(store), publish(store)
    store.activate("tiny", first, "better", by="a test")
    store.activate("tiny", second, "better still", by="a test")
    store.activate("tiny", first, "rolled back", by="a test")
    lines = (tmp_path / "tiny" / "history.jsonl").read_text().splitlines()

    assert store.active_id("tiny") == first
    assert (tmp_path / "tiny" / "active").read_text() == f"{first}\n"
    assert [json.loads(line)["calibrator"] for line in lines] == [first, second, first]
    assert [json.loads(line)["reason"] for line in lines] == [
        "better", "better still", "rolled back",
    ]  # fmt: skip
    assert all(json.loads(line)["at"].endswith("Z") for line in lines)
    assert {json.loads(line)["by"] for line in lines} == {"a test"}


@pytest.mark.parametrize(
    "version",
    [
        "", ".", "..", "../tiny", "/etc/passwd", "active", "history.jsonl", "*", "\x00",
        "20260101T000000Z-temperature-abcdef", "20260101T000000Z-temperature-abcdef/..",
        "20260101T000000Z-../../../tmp-abcdef", "20260101T000000Z-temperature-abcdef\n",
    ],
)  # fmt: skip
def test_unknown_id_of_any_form_is_not_found(store, version):
    publish(store)
    uses: list[Callable[[], object]] = [
        lambda: store.load("tiny", version, SHA),
        lambda: store.report("tiny", version),
        lambda: store.activate("tiny", version, "try", by="a test"),
    ]
    for use in uses:
        with pytest.raises(NotFoundError, match="expected the id of a calibrator of tiny"):
            use()
    assert store.active_id("tiny") is None


def test_calibrator_of_another_hash_is_a_conflict(store):
    version = publish(store)

    with pytest.raises(ConflictError, match="hash bbbbbbbbbbbb, got one fitted for aaaaaaaaaaaa"):
        store.load("tiny", version, "b" * 64)
    assert store.load("tiny", version, SHA).manifest.id == version


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ("c" * 64, ": the weights are the same, but the card's [input] or [output] table was"),
        ("d" * 64, ": the weights differ"),
        ("", ""),
    ],
)
def test_conflict_of_hashes_names_the_part_that_differs(store, stored, reason):
    version = publish(store, weights_sha256=stored)

    with pytest.raises(ConflictError, match=f"got one fitted for aaaaaaaaaaaa{re.escape(reason)}"):
        store.load("tiny", version, "b" * 64, "c" * 64)


def test_conflict_with_an_earlier_release_asks_for_a_new_fit(store):
    version = publish(store)  # its model_sha256 is the hash of the weights

    with pytest.raises(ConflictError, match=r"an earlier release fitted it, .* fit it again$"):
        store.load("tiny", version, "b" * 64, SHA)


def test_calibrator_of_another_model_is_a_conflict(store):
    version = publish(store, model="wide")

    with pytest.raises(ConflictError, match="calibrator of tiny, got one of wide"):
        store.load("tiny", version, SHA)


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b"\xff" * 50),
        lambda path: path.unlink(),
        lambda path: change(path, format="another"),
        lambda path: change(path, format_version=2),
        lambda path: change(path, id=new_id("temperature")),
        lambda path: change(path, num_classes="three"),
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "brackets",
        "above 127",
        "gone",
        "format",
        "version",
        "id",
        "type",
    ],
)
def test_damaged_manifest_is_rejected_and_not_listed(store, tmp_path, damage):
    whole, damaged = publish(store), publish_earlier(store, tmp_path)
    damage(tmp_path / "tiny" / damaged / "manifest.json")

    with pytest.raises(ArtifactError, match=damaged):
        store.load("tiny", damaged, SHA)
    assert [m.id for m in store.versions("tiny")] == [whole]
    assert list(store.scan("tiny")[1]) == [damaged]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.unlink(),
    ],
    ids=["empty", "cut", "noise", "gone"],
)
def test_damaged_state_is_rejected(store, tmp_path, damage):
    version = publish_earlier(store, tmp_path)
    damage(tmp_path / "tiny" / version / "calibrator.safetensors")

    with pytest.raises(
        ArtifactError, match=f"{version}: expected (tensors in )?calibrator.safetensors"
    ):
        store.load("tiny", version, SHA)


def test_error_for_parameters_of_an_earlier_format_differs_from_damage(store, tmp_path):
    version = publish_earlier(store, tmp_path)
    path = tmp_path / "tiny" / version / "calibrator.safetensors"
    safetensors.torch.save_file({"temperature": torch.ones(())}, path)

    with pytest.raises(ConflictError, match=f"an earlier form of it in {version}: fit it again"):
        store.load("tiny", version, SHA)


def test_state_with_nan_is_rejected(store, tmp_path):
    version = publish_earlier(store, tmp_path)
    path = tmp_path / "tiny" / version / "calibrator.safetensors"
    safetensors.torch.save_file({"beta": torch.tensor(torch.nan)}, path)

    with pytest.raises(ArtifactError, match="finite"):
        store.load("tiny", version, SHA)


def test_a_fit_with_nan_is_not_published(store):
    calibrator = Temperature(3)
    calibrator.beta.fill_(torch.nan)

    with pytest.raises(ArgumentError, match=r"expected finite parameters .* \['beta'\]"):
        store.publish(manifest(), calibrator, {})
    assert store.versions("tiny") == []


def test_unknown_method_is_rejected(store, tmp_path):
    version = publish_earlier(store, tmp_path)
    change(tmp_path / "tiny" / version / "manifest.json", method="magic")

    with pytest.raises(ArtifactError, match="magic"):
        store.load("tiny", version, SHA)


def test_leftovers_of_a_crash_are_ignored(store, tmp_path):
    version = publish(store)
    store.activate("tiny", version, "better", by="a test")
    folder = tmp_path / "tiny"
    (folder / f".{new_id('temperature')}.tmp").mkdir()
    (folder / f".{new_id('temperature')}.tmp" / "manifest.json").mkdir(parents=True)
    (folder / ".active.0badcafe.tmp").write_text("half a na")
    (folder / "history.jsonl").write_text('{"at": "20')

    assert [m.id for m in store.versions("tiny")] == [version]
    assert store.active_id("tiny") == version
    another = publish(store)
    store.activate("tiny", another, "goes on", by="a test")
    assert store.active_id("tiny") == another


def test_equal_files_of_one_second_are_one_version(store, tmp_path):
    described = manifest()
    first, again, other = (
        store.publish(described, halving(), {"chosen": chosen}).id for chosen in ("a", "a", "b")
    )

    assert first == again != other
    assert first.rpartition("-")[0] == other.rpartition("-")[0] == described.id
    names = sorted(path.name for path in (tmp_path / "tiny").iterdir())
    assert names == sorted([".lock", first, other])


def test_report_with_nan_is_rejected_and_not_stored(store, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        store.publish(manifest(), halving(), {"ece": float("nan")})
    assert not (tmp_path / "tiny").exists()


def test_failing_disk_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("where a folder should be")

    with pytest.raises(StorageError, match="expected to store a calibrator"):
        publish(ArtifactStore(tmp_path / "file"))


def test_concurrent_reader_always_loads_a_complete_active_version(store, tmp_path):
    versions = [publish(store), publish(store)]
    store.activate("tiny", versions[0], "first", by="a test")
    done = threading.Event()

    def switch() -> None:
        for turn in range(40):
            store.activate("tiny", versions[turn % 2], "back and forth", by="a test")
        done.set()

    writer = threading.Thread(target=switch)
    writer.start()
    seen = set()
    while not done.is_set():
        active = ArtifactStore(tmp_path).active_id("tiny")
        assert active in versions
        seen.add(active)
    writer.join()
    assert seen


# For each line of input, forks a child that publishes and activates repeatedly.
ENDLESS = """
import os, sys
from pathlib import Path
from app.storage.artifacts import ArtifactStore
from tests.storage.test_artifacts import publish

store = ArtifactStore(Path(sys.argv[1]))
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        while True:
            store.activate("tiny", publish(store), "again", by="a test")
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_kill_at_any_time_leaves_a_complete_active_version(tmp_path):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    published = 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        for kill in range(10):
            process.stdin.write("go\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            before = ArtifactStore(tmp_path).active_id("tiny")
            while ArtifactStore(tmp_path).active_id("tiny") == before:
                pass  # until it has started
            threading.Event().wait(0.003 * kill)
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"

            store = ArtifactStore(tmp_path)
            active = store.active_id("tiny")
            assert active is not None
            assert torch.equal(
                store.load("tiny", active, SHA).calibrator.state_dict()["beta"], torch.tensor(0.5)
            )
            for version in store.versions("tiny"):
                store.load("tiny", version.id, SHA)
                store.report("tiny", version.id)
            whole = [path for path in (tmp_path / "tiny").glob("2*") if path.is_dir()]
            assert len(store.versions("tiny")) == len(whole) > published
            published = len(whole)
        process.stdin.close()
    assert process.returncode == 0


def test_history_continues_after_incomplete_line(store, tmp_path):
    version = publish(store)
    history = tmp_path / "tiny" / "history.jsonl"
    store.activate("tiny", version, "first", by="test")
    history.write_bytes(history.read_bytes() + b'{"at": "2026-')
    store.activate("tiny", version, "second", by="test")

    first, torn, second = history.read_text().splitlines()
    assert (json.loads(first)["reason"], json.loads(second)["reason"]) == ("first", "second")
    assert torn == '{"at": "2026-'
