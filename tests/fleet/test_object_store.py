"""Artefacts in a bucket of S3: the contract, races of processes, and a store that fails."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConflictError, SettingsError
from app.storage import objects as settings
from app.storage.artifacts import ArtifactStore
from app.storage.objects import Objects
from tests.api.test_calibrate import ADMIN, TOKEN, events, send
from tests.factories.jobs import wait_for
from tests.factories.service import open_client, post, publish_temperature, thirds
from tests.storage.buckets import MotoServer, open_moto
from tests.storage.objects import ObjectContract
from tests.storage.test_artifacts import SHA, halving, manifest, publish

pytest.importorskip("moto", reason="expected the packages of `make fleet`")
pytest.importorskip("obstore")

PROCESSES, ACTIVATIONS = 4, 250
OUTAGE_S = float(os.environ.get("OUTAGE_S", "8"))

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


def all_objects(url: str) -> dict[str, bytes]:
    """Return the content of all objects of a bucket below a URL, by path."""
    objects = Objects.open(url)
    obstore = pytest.importorskip("obstore")
    paths = [each["path"] for batch in obstore.list(objects._store) for each in batch]
    found = {path: objects.read(path) for path in paths}
    return {path: each.data for path, each in found.items() if each is not None}


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a reading be tried again sooner after a failure, and age sooner."""
    monkeypatch.setattr(settings, "RETRY_S", 0.5)
    monkeypatch.setattr(settings, "LAG_S", 0.1)


@pytest.mark.parametrize("failure", ["paused", "killed"])
def test_service_serves_on_while_the_store_is_down(
    failure, monkeypatch, make_settings, models_dir: Path, tmp_path, quick_retry
):
    with ExitStack() as stack:
        own = stack.enter_context(open_moto(monkeypatch))
        url = "s3://bucket/artifacts"
        first = publish_temperature(url, models_dir / "tiny", 2)
        second = publish_temperature(url, models_dir / "tiny", 3, activate=False)
        service = make_settings(artifacts_dir=url, state_dir=tmp_path / "state", admin_token=TOKEN)
        with open_client(service) as client:
            assert post(client, thirds()).headers["x-calibrator"] == first
            kept = all_objects(url)
            own.pause() if failure == "paused" else own.stop()
            until = time.monotonic() + OUTAGE_S
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
            if failure == "paused":
                own.resume()
            else:  # on the same port, with the objects, which moto has in memory
                stack.callback(MotoServer(int(own.endpoint.rpartition(":")[2])).stop)
                for path, data in kept.items():
                    assert Objects.open(url).create(path, data)
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


# Holds the lease of a fit until it is killed.
FITTER = """
import sys, time
from app.storage import lease
from app.storage.artifacts import ArtifactStore

lease.LEASE_S, lease.RENEW_S = 2.0, 0.5
with ArtifactStore(sys.argv[1]).lease("tiny", "a fit that is killed"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_lease_of_a_killed_fit_ends(url):
    store = ArtifactStore(url)
    with subprocess.Popen(
        [sys.executable, "-c", FITTER, url], stdout=subprocess.PIPE, text=True
    ) as fitter:
        assert fitter.stdout
        assert fitter.stdout.readline() == "held\n"
        time.sleep(3)  # longer than the lease that is not extended
        with pytest.raises(ConflictError, match="got one by a fit that is killed"):
            store.lease("tiny", "another").__enter__()
        fitter.kill()
    time.sleep(2.5)
    with store.lease("tiny", "another") as lease:
        version = store.publish(manifest(), halving(), {}, lease=lease).id
        store.activate("tiny", version, "better", "another", lease)
    assert ArtifactStore(url).active_id("tiny") == version


def test_job_of_one_replica_is_served_by_another(url, make_settings, tmp_path):
    replicas = [
        make_settings(artifacts_dir=url, state_dir=tmp_path / name, admin_token=TOKEN, threads=1)
        for name in ("first", "second")
    ]
    with open_client(replicas[0]) as first, open_client(replicas[1]) as second:
        answer = send(first, method="temperature", activate="always")
        assert answer.status_code == 202, answer.text
        job = events(first, answer.headers["location"])[-1]
        assert job["state"] == "succeeded", job
        wait_for(
            lambda: post(second, thirds()).headers["x-calibrator"] == job["calibrator"],
            "the second replica to read the active version",
        )
        assert [each["id"] for each in second.get("/calibrators").json()["calibrators"]] == [
            job["calibrator"]
        ]
