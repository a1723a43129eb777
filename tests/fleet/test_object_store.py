"""Artefacts in a bucket of S3: the contract, races of processes, and a store that fails."""

import json
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import SettingsError
from app.storage import objects as settings
from app.storage.artifacts import ArtifactStore
from app.storage.objects import Objects
from tests.factories.service import open_client, post, publish_temperature, thirds
from tests.storage.buckets import MotoServer, open_moto
from tests.storage.objects import ObjectContract
from tests.storage.test_artifacts import SHA, publish

pytest.importorskip("moto", reason="expected the packages of `make fleet`")
pytest.importorskip("obstore")

ADMIN = {"Authorization": f"Bearer {'x' * 20}"}
PROCESSES, ACTIVATIONS = 4, 250

# Activates the versions named on the command line in turn.
RACER = """
import sys
from app.storage.artifacts import ArtifactStore

url, turns, *versions = sys.argv[1:]
store = ArtifactStore(url)
store.check()
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(turns)):
    store.activate("tiny", versions[turn % len(versions)], f"turn {turn}", by=versions[0])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[MotoServer]:
    with pytest.MonkeyPatch.context() as monkeypatch, open_moto(monkeypatch) as opened:
        yield opened


@pytest.fixture
def url(server: MotoServer) -> str:
    return f"s3://bucket/{secrets.token_hex(4)}/artifacts"


class TestS3(ObjectContract):
    @pytest.fixture
    def store(self, url: str) -> Any:
        return Objects.open(url)._store


def test_thousand_racing_activations_leave_history_without_a_gap(url):
    store = ArtifactStore(url)
    versions = [publish(store) for _ in range(PROCESSES)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, str(ACTIVATIONS), *versions[number:]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()
    assert [racer.returncode for racer in racers] == [0] * PROCESSES

    objects = Objects.open(url)
    names = objects.names("tiny/history")
    assert names == [f"{n:010d}.json" for n in range(1, PROCESSES * ACTIVATIONS + 1)]
    found = [objects.read(f"tiny/history/{name}") for name in names]
    changes = [json.loads(each.data) for each in found if each is not None]
    authors = Counter(change["by"] for change in changes)
    assert authors == Counter(dict.fromkeys(versions, ACTIVATIONS))
    for version in versions:  # the activations of a process are in its order
        own = [change["reason"] for change in changes if change["by"] == version]
        assert own == [f"turn {turn}" for turn in range(ACTIVATIONS)]
    assert len({change["change"] for change in changes}) == PROCESSES * ACTIVATIONS
    assert ArtifactStore(url).active_id("tiny") == changes[-1]["calibrator"]


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a reading be tried again sooner after a failure, and age sooner."""
    monkeypatch.setattr(settings, "RETRY_S", 0.5)
    monkeypatch.setattr(settings, "LAG_S", 0.1)


@pytest.mark.parametrize("failure", ["paused", "killed"])
def test_service_serves_on_while_the_store_is_down(
    failure, monkeypatch, make_settings, models_dir: Path, tmp_path, quick_retry
):
    with open_moto(monkeypatch) as own:
        url = "s3://bucket/artifacts"
        first = publish_temperature(url, models_dir / "tiny", 2)
        second = publish_temperature(url, models_dir / "tiny", 3, activate=False)
        service = make_settings(
            artifacts_dir=url, state_dir=tmp_path / "state", admin_token="x" * 20
        )
        with open_client(service) as client:
            assert post(client, thirds()).headers["x-calibrator"] == first
            own.pause() if failure == "paused" else own.stop()
            until = time.monotonic() + 8
            while time.monotonic() < until:
                answer = post(client, thirds())
                assert answer.status_code == 200
                assert answer.headers["x-calibrator"] == first
                time.sleep(0.1)
            assert client.get("/readyz").status_code == 200
            for call, path in (
                (client.post, f"/calibrators/{second}/activate"),
                (client.delete, f"/calibrators/{second}"),
            ):
                refused = call(path, headers=ADMIN)
                assert refused.status_code == 503
                assert "expected the object store to answer" in refused.json()["detail"]
                assert refused.headers["retry-after"]
            if failure == "killed":
                return
            own.resume()
            assert client.post(f"/calibrators/{second}/activate", headers=ADMIN).status_code == 200
            assert post(client, thirds()).headers["x-calibrator"] == second


def test_start_with_a_store_that_is_down_is_checked_later(monkeypatch, make_settings, tmp_path):
    with open_moto(monkeypatch) as own:
        own.stop()
        service = make_settings(artifacts_dir="s3://bucket/a", state_dir=tmp_path / "state")
        with open_client(service) as client:
            assert post(client, thirds()).status_code == 503
            assert post(client, thirds(), calibrator="none").status_code == 200
            assert client.get("/metrics").status_code == 200


def test_missing_bucket_stops_the_start(server: MotoServer):
    store = ArtifactStore("s3://no-such-bucket/artifacts")

    with pytest.raises(SettingsError, match="SEGCAL_ARTIFACTS_DIR: expected a bucket that exists"):
        store.check()


@pytest.mark.parametrize("url", ["az://container/prefix"])
def test_store_without_its_variables_stops_the_start(url, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(SettingsError, match="SEGCAL_ARTIFACTS_DIR: expected a bucket that its var"):
        ArtifactStore(url)


def test_calibrator_of_a_bucket_is_used_for_its_model_alone(url, models_dir):
    publish_temperature(url, models_dir / "tiny", 2)

    assert ArtifactStore(url).active("tiny", SHA) is None
