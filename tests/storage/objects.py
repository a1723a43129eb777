"""Contract over a store of obstore, with what holds for buckets alone."""

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

    def test_activation_is_seen_elsewhere_within_the_lag(self, open_store: OpenStore, monkeypatch):
        monkeypatch.setattr(settings, "LAG_S", 0.2)
        writer, reader = open_store(), open_store()
        first, second = publish(writer), publish(writer)
        writer.activate("tiny", first, "better", by="a test")
        assert reader.active_id("tiny") == first
        writer.activate("tiny", second, "better", by="a test")
        time.sleep(0.25)

        assert reader.active_id("tiny") == second

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
