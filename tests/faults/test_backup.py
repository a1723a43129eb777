"""A copy that is made under the locks, while the service changes, is restored whole."""

import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from app.storage.artifacts import ArtifactStore
from tests.factories.service import open_client, post, publish_temperature, thirds
from tests.faults.steps import settings_of
from tests.faults.stored import assert_no_partial_files, assert_versions_load

ROOT = Path(__file__).parents[2]


def command_of(heading: str) -> str:
    """Return the first shell block below a heading of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    return text.partition(f"\n## {heading}\n")[2].partition("```sh\n")[2].partition("```")[0]


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_backup_during_activations_and_deletions_is_restored_whole(folder: Path, tmp_path: Path):
    (folder / "artifacts").rename(folder / "calibration_artifacts")
    (folder / "artifacts").symlink_to("calibration_artifacts")
    store = ArtifactStore(folder / "artifacts")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            before = store.active_id("tiny")
            publish_temperature(folder / "artifacts", folder / "models" / "tiny", 4)
            assert before
            store.delete("tiny", before)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for number in range(5):
            subprocess.run(["sh", "-euc", command_of("Backup and restore")], cwd=folder, check=True)
            restored = tmp_path / f"restored-{number}"
            shutil.copytree(folder / "models", restored / "models")
            for packed in sorted(folder.glob("backup-*.tar")):
                with tarfile.open(packed) as archive:
                    archive.extractall(restored / "artifacts", filter="data")
            active = assert_versions_load(restored)
            assert_no_partial_files(restored)
    finally:
        stop.set()
        changing.join()
    with open_client(settings_of(restored)) as client:
        assert post(client, thirds()).headers["x-calibrator"] == active
