"""Upgrade and downgrade: what an earlier release wrote is read, what a later one wrote is named."""

import hashlib
import json
from pathlib import Path

import pytest

from app.errors import ArtifactError, ConflictError
from app.jobs.store import read_request
from app.storage.artifacts import ArtifactStore
from tests.conftest import MakeClient
from tests.factories.service import (
    RED,
    SATURATED_AT_2,
    assert_problem,
    assert_serves,
    post,
    publish_temperature,
    solid,
)
from tests.storage.test_artifacts import SHA, publish, publish_earlier

LATER = (
    "expected segcal-calibrator version 1, got segcal-calibrator version 2, of a later release: "
    "upgrade the service, or use another calibrator"
)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def rewrite(folder: Path, **entries: object) -> str:
    """Change a version's manifest as a release would that wrote it so: with a valid checksum."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text()) | entries
    stem = folder.name.rpartition("-")[0]
    text = json.dumps(document | {"id": stem}, indent=2) + "\n"
    digest = hashlib.sha256(text.replace(f'  "id": "{stem}",\n', "", 1).encode()).hexdigest()[:12]
    version = f"{stem}-{digest}"
    path.write_text(text.replace(f'"id": "{stem}"', f'"id": "{version}"', 1))
    folder.rename(folder.with_name(version))
    return version


def test_fields_that_a_later_release_added_are_ignored(store, tmp_path):
    version = rewrite(tmp_path / "tiny" / publish(store), added={"by": "a later release"})
    assert store.load("tiny", version, SHA).manifest.id == version


@pytest.mark.parametrize("changes", [{}, {"num_classes": "renamed", "method": ["several"]}])
def test_later_format_is_refused_with_a_sentence(store, tmp_path, changes):
    version = rewrite(tmp_path / "tiny" / publish(store), format_version=2, **changes)
    with pytest.raises(ArtifactError, match=f"^{version}: {LATER}$"):
        store.load("tiny", version, SHA)
    assert store.scan("tiny") == ([], {version: f"{version}: {LATER}"})


def test_method_of_a_later_release_is_named(store, tmp_path):
    version = rewrite(tmp_path / "tiny" / publish(store), method="magic")
    with pytest.raises(ArtifactError, match="magic; a method of a later release needs"):
        store.load("tiny", version, SHA)


def test_downgrade_names_the_last_version_that_this_release_reads(
    make_client: MakeClient, models_dir, artifacts_dir
):
    older = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    newer = publish_temperature(artifacts_dir, models_dir / "tiny", 3)
    newer = rewrite(artifacts_dir / "tiny" / newer, format_version=2)
    (artifacts_dir / "tiny" / "active").write_text(f"{newer}\n")
    client = make_client(admin_token="a token for tests")

    assert_problem(post(client, solid(RED)), 503, LATER, f"the last whole one is {older}")
    assert post(client, solid(RED), calibrator="none").status_code == 200
    client.headers["Authorization"] = "Bearer a token for tests"
    assert client.post(f"/calibrators/{older}/activate").status_code == 200
    assert post(client, solid(RED)).json()["mean_confidence"] == pytest.approx(
        SATURATED_AT_2, abs=1e-3
    )
    assert_serves(client)


def test_version_without_checksums_of_an_earlier_release_is_read(store, tmp_path):
    version = publish_earlier(store, tmp_path)
    assert store.load("tiny", version, SHA).manifest.files == {}


def test_upload_to_another_release_is_named(tmp_path):
    (tmp_path / "request.json").write_text('{"option_of_another_release": 1}')
    with pytest.raises(ConflictError, match="got one to another release: upload it again"):
        read_request(tmp_path)
