"""Contract over a store of obstore, with what holds for buckets alone."""

import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from app.errors import ConflictError, SettingsError, UnavailableError
from app.storage import lease as leases
from app.storage import objects as settings
from app.storage.artifacts import ArtifactStore
from app.storage.object_backend import ObjectBackend
from app.storage.objects import Objects
from tests.storage.contract import ArtifactStoreContract, OpenStore, calibrators_of
from tests.storage.test_artifacts import SHA, halving, manifest, publish


class FailingObjects(Objects):
    """Objects of which the put with a given number, from 0, and all later requests fail.

    With `late`, that put takes effect before it fails.
    """

    def __init__(self, store: Any, puts: int, *, late: bool) -> None:
        super().__init__(store)
        self._puts, self._late, self.failed = puts, late, False

    def _put(self, path: str, data: bytes, mode: str | dict[str, str]) -> bool:
        self._puts -= 1
        if self._puts >= 0:
            return super()._put(path, data, mode)
        if self._puts == -1 and self._late:
            super()._put(path, data, mode)
        self.failed = True
        raise UnavailableError("expected an answer, got none")

    def delete(self, path: str) -> None:
        if self.failed:
            raise UnavailableError("expected an answer, got none")
        super().delete(path)


class ObjectContract(ArtifactStoreContract):
    """The contract over a bucket; a subclass has a fixture `store`."""

    @pytest.fixture
    def open_store(self, store: Any) -> OpenStore:
        self.objects = Objects(store)
        return lambda: ArtifactStore(ObjectBackend(Objects(store)))

    def write(self, open_store: OpenStore, path: str, data: bytes) -> None:
        found = self.objects.read(path)
        assert found is not None
        assert self.objects.replace(path, data, found.version)

    def history(self, open_store: OpenStore) -> list[str]:
        names = self.objects.names("tiny/history")
        assert names == [f"{number:010d}.json" for number in range(1, len(names) + 1)]
        found = [self.objects.read(f"tiny/history/{name}") for name in names]
        return calibrators_of([each.data for each in found if each is not None])

    def test_probe_passes_and_leaves_no_object(self, open_store: OpenStore):
        open_store().check()

        assert self.objects.names("") == []

    def test_no_reading_is_older_than_the_lag(self, open_store: OpenStore, monkeypatch):
        monkeypatch.setattr(settings, "LAG_S", 0.3)
        writer = open_store()
        versions = [publish(writer) for _ in range(10)]
        replaced_at: dict[str | None, float] = {}
        readings: list[tuple[float, str | None]] = []
        done = threading.Event()

        def poll() -> None:
            reader = open_store()
            while not done.wait(0.01):
                began = time.monotonic()
                readings.append((began, reader.active_id("tiny")))

        readers = [threading.Thread(target=poll) for _ in range(3)]
        for reader in readers:
            reader.start()
        for before, version in zip([None, *versions], versions, strict=False):
            writer.activate("tiny", version, "in turn", by="a test")
            replaced_at[before] = time.monotonic()
            time.sleep(0.15)
        time.sleep(0.3)
        done.set()
        for reader in readers:
            reader.join()

        ages = [began - replaced_at.get(version, began) for began, version in readings]
        assert max(ages) <= 0.3
        assert len({version for _, version in readings}) > 1

    def test_readings_within_the_lag_send_no_request(self, open_store: OpenStore, monkeypatch):
        store = open_store()
        store.activate("tiny", publish(store), "better", by="a test")
        monkeypatch.setattr(settings, "LAG_S", 60.0)
        active = store.active("tiny", SHA)
        monkeypatch.setattr(Objects, "read", None)

        assert store.active("tiny", SHA) is active is not None

    def test_activation_that_dies_at_any_put_is_whole_or_absent(self, open_store, store):
        done = open_store()
        versions = [publish(done) for _ in range(2)]
        done.activate("tiny", versions[0], "first", by="a test")
        active, count, puts, late = versions[0], 1, 0, False
        while True:
            dying = FailingObjects(store, puts, late=late)
            backend = ObjectBackend(dying)
            backend._checked = True  # the puts of the probe are not counted
            target = versions[1] if active == versions[0] else versions[0]
            with suppress(UnavailableError):
                ArtifactStore(backend).activate("tiny", target, "dies", by="a test")
            assert open_store().active_id("tiny") in versions
            open_store().recover()
            now, history = open_store().active_id("tiny"), self.history(open_store)
            assert history[-1] == now
            assert len(history) - count == (now == target)
            active, count = now, len(history)
            if not dying.failed:
                assert puts == 2  # the history and the pointer
                return
            puts, late = puts + late, not late

    def test_publication_that_dies_at_any_put_is_whole_or_absent(self, open_store, store):
        for puts in range(3):  # parameters, report, manifest
            backend = ObjectBackend(FailingObjects(store, puts, late=False))
            backend._checked = True
            with pytest.raises(UnavailableError):
                publish(ArtifactStore(backend))
            assert open_store().scan("tiny") == ([], {})

    def test_deletion_that_dies_at_any_put_is_completed_at_the_next_start(self, open_store, store):
        writer = open_store()
        active = publish(writer)
        writer.activate("tiny", active, "first", by="a test")
        for puts in range(3):  # the mark, the history, the pointer
            version = publish(writer)
            backend = ObjectBackend(FailingObjects(store, puts, late=False))
            backend._checked = True
            with pytest.raises(UnavailableError):
                ArtifactStore(backend).delete("tiny", version)
            open_store().recover()
            listed = {each.id for each in open_store().versions("tiny")}
            assert (version in listed) == (puts == 0)
            assert open_store().active_id("tiny") == active == self.history(open_store)[-1]

    def test_second_fit_is_refused_while_the_lease_is_held(self, open_store: OpenStore):
        with (
            open_store().lease("tiny", "job a"),
            pytest.raises(ConflictError, match="expected no other fit of tiny at once, got one by"),
            open_store().lease("tiny", "job b"),
        ):
            raise AssertionError

        with open_store().lease("wide", "job c"), open_store().lease("tiny", "job d"):
            assert len(self.objects.names("tiny/leases")) == 1

    def test_fit_that_lost_its_lease_publishes_nothing(self, open_store: OpenStore, monkeypatch):
        monkeypatch.setattr(leases, "LEASE_S", 0.05)
        monkeypatch.setattr(leases, "RENEW_S", 60.0)  # as of a process that is suspended
        store = open_store()
        before = publish(store)
        with store.lease("tiny", "job a") as lost:
            time.sleep(0.1)
            with open_store().lease("tiny", "job b") as held:
                with pytest.raises(ConflictError, match=r"the lease 1 .*, got 2"):
                    store.publish(manifest(), halving(), {}, lease=lost)
                with pytest.raises(ConflictError, match="expected the lease 1"):
                    store.activate("tiny", before, "better", "job a", lost)
                store.activate("tiny", before, "better", "job b", held)
        assert [each.id for each in store.versions("tiny")] == [before]

    def test_lease_is_extended_while_the_fit_runs(self, open_store: OpenStore, monkeypatch):
        monkeypatch.setattr(leases, "LEASE_S", 1.0)
        monkeypatch.setattr(leases, "RENEW_S", 0.1)
        with open_store().lease("tiny", "job a") as held:
            time.sleep(1.2)
            with pytest.raises(ConflictError), open_store().lease("tiny", "job b"):
                pass
            held.check()

    def test_store_that_ignores_conditions_is_refused(self, store: Any):
        class Careless(Objects):
            """Puts without their condition, as some servers of S3 do."""

            def _put(self, path: str, data: bytes, mode: str | dict[str, str]) -> bool:
                return super()._put(path, data, "overwrite")

        class Racing(Objects):
            """Checks the condition and writes in two steps, as some servers of S3 do."""

            def _put(self, path: str, data: bytes, mode: str | dict[str, str]) -> bool:
                found = self.read(path)
                time.sleep(0.05)
                allowed = found is None if mode == "create" else found and found.version == mode
                return bool(allowed) and super()._put(path, data, "overwrite")

        for kind in (Careless, Racing):
            with pytest.raises(SettingsError, match=r"ignores If-None-Match: .* and If-Match of"):
                ArtifactStore(ObjectBackend(kind(store))).check()
        assert Objects(store).names("") == []
