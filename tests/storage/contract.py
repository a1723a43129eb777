"""Contract of `ArtifactStore` over any backend, as functions of a test class.

Each subclass has a fixture `open_store` that returns a function: each call opens the same storage
anew, as another process does.
"""

import json
import threading
import zipfile
from collections.abc import Callable
from io import BytesIO

import pytest
import torch

from app.errors import ActiveCalibratorError, ConflictError, NotFoundError
from app.storage.artifacts import ArtifactStore
from tests.storage.test_artifacts import LOGITS, SHA, halving, manifest, publish

OpenStore = Callable[[], ArtifactStore]
UNKNOWN = "20260101T000000Z-temperature-abcdefabcdef"


class ArtifactStoreContract:
    """What holds over every backend."""

    def test_published_version_is_read_by_another_process(self, open_store: OpenStore):
        described = open_store().publish(manifest(), halving(), {"chosen": "temperature"})
        store = open_store()
        stored = store.load("tiny", described.id, SHA)

        assert stored.manifest == described == store.find(described.id)
        assert torch.equal(stored.calibrator(LOGITS), (LOGITS / 2).log_softmax(1))
        assert store.report("tiny", described.id) == {"chosen": "temperature"}
        assert store.model_of(described.id) == "tiny"
        assert store.load("tiny", described.id, SHA) is stored
        with zipfile.ZipFile(BytesIO(store.archive("tiny", described.id))) as archive:
            files = {name.rpartition("/")[2] for name in archive.namelist()}
        assert files == {"manifest.json", "calibrator.safetensors", "report.json"}

    def test_versions_are_listed_newest_first(self, open_store: OpenStore):
        store = open_store()
        ids = [publish(store, id=f"2026010{day}T000000Z-temperature") for day in (2, 1, 3)]

        assert [each.id for each in store.versions("tiny")] == sorted(ids, reverse=True)
        assert store.versions("wide") == []

    def test_equal_files_of_one_second_are_one_version(self, open_store: OpenStore):
        store, described = open_store(), manifest()
        first, again = (store.publish(described, halving(), {}).id for _ in range(2))

        assert first == again
        assert [each.id for each in store.versions("tiny")] == [first]

    def test_activation_is_read_by_another_process(self, open_store: OpenStore):
        store = open_store()
        assert store.active_id("tiny") is None
        assert store.active("tiny", SHA) is None
        first, second = publish(store), publish(store)
        for version in (first, second, first):
            store.activate("tiny", version, "better", by="a test")
            assert store.active_id("tiny") == version
            active = open_store().active("tiny", SHA)
            assert active is not None
            assert active.manifest.id == version

    def test_unknown_version_is_not_found(self, open_store: OpenStore):
        store = open_store()
        publish(store)
        uses: list[Callable[[], object]] = [
            lambda: store.load("tiny", UNKNOWN, SHA),
            lambda: store.report("tiny", UNKNOWN),
            lambda: store.activate("tiny", UNKNOWN, "try", by="a test"),
            lambda: store.delete("tiny", UNKNOWN),
            lambda: store.find(UNKNOWN),
        ]
        for use in uses:
            with pytest.raises(NotFoundError, match="expected the id of a calibrator"):
                use()
        assert store.active_id("tiny") is None

    def test_version_of_another_model_is_a_conflict(self, open_store: OpenStore):
        store = open_store()
        version = publish(store, model="wide")

        with pytest.raises(ConflictError, match="calibrator of tiny, got one of wide"):
            store.activate("tiny", version, "try", by="a test")

    def test_deleted_version_is_gone(self, open_store: OpenStore):
        store = open_store()
        kept, deleted = publish(store), publish(store)
        store.activate("tiny", deleted, "better", by="a test")
        store.activate("tiny", kept, "better", by="a test")
        store.delete("tiny", deleted)

        assert [each.id for each in store.versions("tiny")] == [kept]
        assert store.active_id("tiny") == open_store().active_id("tiny") == kept
        with pytest.raises(NotFoundError):
            store.load("tiny", deleted, SHA)
        with pytest.raises(NotFoundError):
            open_store().activate("tiny", deleted, "again", by="a test")

    def test_active_version_is_not_deleted(self, open_store: OpenStore):
        store = open_store()
        version = publish(store)
        store.activate("tiny", version, "better", by="a test")
        with pytest.raises(ConflictError, match="not active"):
            store.delete("tiny", version)

        store.activate("tiny", version, "again", by="a test")
        assert [each.id for each in store.versions("tiny")] == [version]

    def test_version_of_a_changed_model_is_not_used(self, open_store: OpenStore):
        store = open_store()
        store.activate("tiny", publish(store), "better", by="a test")

        assert store.active("tiny", "b" * 64) is None

    def test_racing_activations_leave_history_without_a_gap(self, open_store: OpenStore):
        store = open_store()
        versions = [publish(store) for _ in range(4)]
        errors = self.race(open_store, versions, each=5)

        assert errors == []
        history = self.history(open_store)
        assert len(history) == 20
        assert sorted(history) == sorted(versions * 5)
        assert open_store().active_id("tiny") == history[-1]

    def test_racing_deletion_and_activation_leave_a_whole_active_version(
        self, open_store: OpenStore
    ):
        for _ in range(5):
            store = open_store()
            first, second = publish(store), publish(store)
            store.activate("tiny", first, "better", by="a test")
            outcomes: list[str] = []

            def attempt(name: str, change: Callable[[], None], outcomes=outcomes) -> None:
                try:
                    change()
                    outcomes.append(name)
                except (ConflictError, NotFoundError):
                    pass

            def activate(version=second) -> None:
                open_store().activate("tiny", version, "better", by="a test")

            def delete(version=second) -> None:
                open_store().delete("tiny", version)

            threads = [
                threading.Thread(target=attempt, args=(change.__name__, change))
                for change in (activate, delete)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(outcomes) == 1
            active = open_store().active("tiny", SHA)
            assert active is not None
            assert active.manifest.id == (second if outcomes == ["activate"] else first)

    def test_damaged_pointer_is_reported_and_replaced(self, open_store: OpenStore):
        store = open_store()
        version, other = publish(store), publish(store)
        store.activate("tiny", version, "better", by="a test")
        self.write(open_store, "tiny/active", b"nonsense")

        store = open_store()
        with pytest.raises(ActiveCalibratorError, match=f"the last whole one is {version}"):
            store.active("tiny", SHA)
        store.recover()
        store.activate("tiny", other, "restored", by="a test")
        assert open_store().active_id("tiny") == other
        assert self.history(open_store) == [version, other]

    def test_damaged_file_is_reported_for_its_version(self, open_store: OpenStore):
        store = open_store()
        whole, damaged = publish(store), publish(store)
        self.write(open_store, f"tiny/{damaged}/report.json", b"{}")
        store = open_store()

        assert [each.id for each in store.versions("tiny")] == [whole]
        assert list(store.scan("tiny")[1]) == [damaged]
        with pytest.raises(Exception, match=f"{damaged}: expected report.json with the checksum"):
            store.activate("tiny", damaged, "try", by="a test")
        store.delete("tiny", damaged)
        assert store.scan("tiny")[1] == {}

    def test_leased_fit_is_published_and_activated(self, open_store: OpenStore):
        store = open_store()
        for _ in range(2):
            with store.lease("tiny", "a test") as lease:
                version = store.publish(manifest(), halving(), {}, lease=lease).id
                store.activate("tiny", version, "better", "a test", lease)
            assert store.active_id("tiny") == version

    def race(self, open_store: OpenStore, versions: list[str], each: int) -> list[Exception]:
        """Activate each version repeatedly in a thread of its own; return what failed."""
        errors: list[Exception] = []
        start = threading.Barrier(len(versions))

        def activate(version: str) -> None:
            try:
                store = open_store()
                start.wait()
                for _ in range(each):
                    store.activate("tiny", version, "a race", by="a test")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=activate, args=(version,)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors

    def write(self, open_store: OpenStore, path: str, data: bytes) -> None:
        """Overwrite a stored file."""
        raise NotImplementedError

    def history(self, open_store: OpenStore) -> list[str]:
        """Return the calibrators of the history of the model `tiny`, oldest first."""
        raise NotImplementedError


def calibrators_of(lines: list[bytes]) -> list[str]:
    """Return the calibrators of changes in JSON."""
    return [json.loads(line)["calibrator"] for line in lines]
