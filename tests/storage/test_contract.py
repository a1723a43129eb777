"""The contract over a folder and over a bucket in memory; `make fleet` has it over S3."""

from pathlib import Path
from typing import Any

import pytest

from app.storage.artifacts import ArtifactStore
from tests.storage.buckets import memory_store
from tests.storage.contract import ArtifactStoreContract, OpenStore, calibrators_of
from tests.storage.objects import ObjectContract


class TestFolder(ArtifactStoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        self.root = tmp_path
        return lambda: ArtifactStore(tmp_path)

    def write(self, open_store: OpenStore, path: str, data: bytes) -> None:
        (self.root / path).write_bytes(data)

    def history(self, open_store: OpenStore) -> list[str]:
        return calibrators_of((self.root / "tiny" / "history.jsonl").read_bytes().splitlines())


class TestMemory(ObjectContract):
    @pytest.fixture
    def store(self) -> Any:
        return memory_store()
