"""Versions in a bucket of an object store, which any number of machines may share.

    <model>/<id>/…                   the files of a version, created once; the manifest last
    <model>/history/<number>.json    each change in order, created once: what became active, or
                                     which version was deleted
    <model>/active                   the number and the version of the last change
    <model>/deleted/<id>/<change>    created before a deletion, and kept: the version can't be
                                     activated again
    <model>/leases/<number>.json     the lease of a fit (see `lease`)

A change takes effect with the creation of the next object of the history, of which a store creates
one. `active` follows by a conditional put on its ETag; where the process dies in between, the next
change or start replaces it. A change that loses the creation reads what won and decides again.
"""

import json
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from app.errors import (
    ArtifactError,
    ConflictError,
    NotFoundError,
    SegcalError,
    UnavailableError,
)
from app.schemas.calibrator import Manifest
from app.storage.backend import ID_PATTERN, POINTER, Lease
from app.storage.lease import ObjectLease
from app.storage.manifest import MANIFEST, check_version, timestamp
from app.storage.objects import Objects, StoredObject

log = logging.getLogger(__name__)

HISTORY, DELETED = "history", "deleted"
ATTEMPTS = 1000  # to create an object of the history, each lost to another change


@dataclass(frozen=True)
class ObjectVersion:
    """The files of one version in a bucket."""

    objects: Objects
    model: str
    id: str

    def read(self, name: str) -> bytes:
        """Read a file unverified; raises ArtifactError, NotFoundError without the manifest."""
        found = self.objects.read(f"{self.model}/{self.id}/{name}")
        if found is not None:
            return found.data
        if name == MANIFEST or not self.has(MANIFEST):  # deleted since it was found
            raise NotFoundError(f"expected the id of a calibrator, got {self.id!r}")
        raise ArtifactError(f"{self.id}: expected {name}, got: no such object")

    def has(self, name: str) -> bool:
        """Return whether the version has a file."""
        return self.objects.read(f"{self.model}/{self.id}/{name}") is not None


@dataclass(frozen=True)
class Change:
    """One object of the history: the version that is active from then on, None without one."""

    at: str
    calibrator: str | None
    by: str
    reason: str
    change: str  # random, so that the author knows an object whose creation was not answered
    deleted: str | None = None


@dataclass(frozen=True)
class ModelState:
    """The pointer of a model, None without one, with the number and the version that it holds."""

    pointer: StoredObject | None
    number: int = 0
    calibrator: str | None = None


class ObjectBackend:
    """Storage in a bucket whose store honours conditions."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._checked = False

    @classmethod
    def open(cls, url: str) -> "ObjectBackend":
        """Open the bucket of a URL; raises SettingsError for one that can't be."""
        return cls(Objects.open(url))

    def check(self) -> None:
        """Raise SettingsError, before any change, where the store ignores conditions."""
        if not self._checked:
            self._objects.require_conditions()
            self._checked = True

    def ids(self, model: str) -> list[str]:
        """List the ids of a model's versions, newest first."""
        return [name for name in self._objects.names(model)[::-1] if ID_PATTERN.fullmatch(name)]

    def model_of(self, version: str) -> str | None:
        """Return the model of a version; None where there is none."""
        for model in self._models():
            if self._objects.read(f"{model}/{version}/{MANIFEST}") is not None:
                return model
        return None

    def files(self, model: str, version: str) -> ObjectVersion | None:
        """Return a version's files; None where there was none up to `LAG_S` ago."""
        path = f"{model}/{version}/{MANIFEST}"
        if self._objects.read_recent(path) is None:
            self._objects.forget(path)  # clients name any number of versions that do not exist
            return None
        return ObjectVersion(self._objects, model, version)

    def active_id(self, model: str, *, latest: bool = False) -> str | None:
        """Read the id of the active version, as it was up to `LAG_S` ago."""
        path = f"{model}/{POINTER}"
        found = self._objects.read(path) if latest else self._objects.read_recent(path)
        return None if found is None else parse_pointer(model, found).calibrator

    def activated(self, model: str) -> Iterator[str]:
        """Yield the ids of the activated versions, latest activation first."""
        for name in self._objects.names(f"{model}/{HISTORY}")[::-1]:
            found = self._objects.read(f"{model}/{HISTORY}/{name}")
            version = found.document.get("calibrator") if found else None
            if isinstance(version, str) and ID_PATTERN.fullmatch(version):
                yield version

    def add(self, manifest: Manifest, contents: dict[str, bytes], lease: Lease | None) -> None:
        """Create the files of a version, the last of `contents` once the lease was checked."""
        self.check()
        *files, last = contents
        for name in files:
            self._objects.create(f"{manifest.model}/{manifest.id}/{name}", contents[name])
        if lease is not None:
            lease.check()
        self._objects.create(f"{manifest.model}/{manifest.id}/{last}", contents[last])

    def activate(self, model: str, version: str, reason: str, by: str, lease: Lease | None) -> None:
        """Append an activation to the history."""
        self.check()
        check_version(ObjectVersion(self._objects, model, version))

        def decide(_state: ModelState) -> Change:
            if lease is not None:
                lease.check()
            if self._objects.names(f"{model}/{DELETED}/{version}"):
                raise NotFoundError(f"expected the id of a calibrator of {model}, got {version!r}")
            return Change(timestamp(), version, by, reason, secrets.token_hex(8))

        self._append(model, decide)

    def delete(self, model: str, version: str) -> None:
        """Append a deletion to the history, and delete the files of the version."""
        self.check()
        self.active_id(model, latest=True)  # raises ArtifactError
        change = secrets.token_hex(8)

        def decide(state: ModelState) -> Change:
            if state.calibrator == version:
                raise ConflictError(f"expected a calibrator that is not active, got {version}")
            reason = f"deleted {version}"
            return Change(timestamp(), state.calibrator, "deletion", reason, change, version)

        # Before the change, so that an activation that is decided after it finds the object.
        mark = f"{model}/{DELETED}/{version}/{change}"
        self._objects.create(mark, b"")
        try:
            self._append(model, decide)
        except ConflictError:
            self._objects.delete(mark)
            raise
        self._delete_files(model, version)

    def recover(self) -> None:
        """Complete the changes of processes that died, of all models."""
        try:
            for model in self._models():
                self._complete(model)
        except SegcalError as error:
            log.warning("interrupted changes can't be completed: %s", error)

    @contextmanager
    def lease(self, model: str, by: str) -> Iterator[ObjectLease]:
        """Hold the lease of a model's fit; raises ConflictError while another fit holds it."""
        self.check()
        with ObjectLease.acquire(self._objects, model, by) as lease:
            yield lease

    def _models(self) -> list[str]:
        return [name for name in self._objects.names("") if not name.startswith(".")]

    def _complete(self, model: str) -> None:
        """Let the pointer follow the history, and delete the files of deleted versions."""
        while (state := self._state(model)) and (change := self._change(model, state.number + 1)):
            self._follow(model, state, change)
        existing = set(self.ids(model))
        for version in existing.intersection(self._objects.names(f"{model}/{DELETED}")):
            try:
                self.delete(model, version)
            except (ConflictError, ArtifactError) as error:
                log.warning("the deletion of %s can't be completed: %s", version, error)

    def _append(self, model: str, decide: Callable[[ModelState], Change]) -> None:
        """Create the next object of a model's history, decided on the state before it."""
        for _ in range(ATTEMPTS):
            state = self._state(model)
            change = decide(state)
            path = f"{model}/{HISTORY}/{state.number + 1:010d}.json"
            if self._objects.create(path, encode(asdict(change))):
                self._follow(model, state, change)
                return
            other = self._change(model, state.number + 1)
            if other is not None:
                self._follow(model, state, other)
                if other.change == change.change:  # created by a put whose answer was lost
                    return
        raise UnavailableError(f"expected fewer changes of {model} at once, got {ATTEMPTS} others")

    def _follow(self, model: str, state: ModelState, change: Change) -> None:
        """Let the pointer follow the next change, unless another process has done so."""
        path = f"{model}/{POINTER}"
        data = encode({"number": state.number + 1, "calibrator": change.calibrator})
        if state.pointer is None:
            self._objects.create(path, data)
        else:
            self._objects.replace(path, data, state.pointer.version)
        self._objects.forget(path)

    def _state(self, model: str) -> ModelState:
        """Read the pointer; a damaged one has the last number of the history."""
        pointer = self._objects.read(f"{model}/{POINTER}")
        if pointer is None:
            return ModelState(None)
        try:
            return parse_pointer(model, pointer)
        except ArtifactError:
            numbers = self._objects.names(f"{model}/{HISTORY}")
            last = int(numbers[-1].partition(".")[0]) if numbers else 0
            change = self._change(model, last)
            return ModelState(pointer, last, change.calibrator if change else None)

    def _change(self, model: str, number: int) -> Change | None:
        """Read an object of the history; None where there is none. Raises ArtifactError."""
        found = self._objects.read(f"{model}/{HISTORY}/{number:010d}.json")
        if found is None:
            return None
        try:
            return Change(**found.document)
        except TypeError as error:
            raise ArtifactError(
                f"{HISTORY} of {model}: expected a change as number {number}, got other data"
            ) from error

    def _delete_files(self, model: str, version: str) -> None:
        """Delete the files of a version, the manifest first: without it they are no version."""
        names = self._objects.names(f"{model}/{version}")
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self._objects.delete(f"{model}/{version}/{name}")
        self._objects.forget(f"{model}/{version}/{MANIFEST}")


def parse_pointer(model: str, pointer: StoredObject) -> ModelState:
    """Return the state that a pointer holds; raises ArtifactError for a damaged one."""
    document = pointer.document
    number, version = document.get("number"), document.get("calibrator")
    valid = isinstance(version, str) and ID_PATTERN.fullmatch(version)
    if not isinstance(number, int) or not (valid or (version is None and "calibrator" in document)):
        raise ArtifactError(
            f"{POINTER} of {model}: expected a calibrator's id, got {pointer.data[:80]!a}"
        )
    return ModelState(pointer, number, version)


def encode(document: dict[str, object]) -> bytes:
    """Encode an object of JSON."""
    return json.dumps(document).encode()
