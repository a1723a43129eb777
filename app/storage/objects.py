"""Objects of a bucket: conditional puts and reads, with timeouts, over obstore."""

import importlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any

from app.errors import SettingsError, UnavailableError

log = logging.getLogger(__name__)

OPTION = "SEGCAL_ARTIFACTS_DIR"
LAG_S = 1.0  # age up to which a reading is used again
RETRY_S = 5.0  # after a failure, readings are used again for as long before the next attempt
TIMEOUT_S = 2  # of one request of artefacts; one that fails is sent once more
CONNECT_TIMEOUT_S = 1
RACERS = 8  # concurrent puts of the probe
ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}


@dataclass(frozen=True)
class StoredObject:
    """The content of an object, and what identifies it for a conditional put."""

    data: bytes
    version: dict[str, str]  # e_tag, and the generation where a store has one
    modified_at: float  # seconds since the epoch, by the store's clock

    @property
    def document(self) -> dict[str, Any]:
        """Return the content as a JSON object; empty for other content."""
        try:
            document = json.loads(self.data)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}


@dataclass
class Reading:
    """The last reading of an object, None without one, and its age by the monotonic clock."""

    found: StoredObject | None
    at: float


class Objects:
    """Objects below a URL's prefix. Safe for threads.

    `option` is the setting or the option that names the URL, for messages. Each method raises
    UnavailableError where the store can't be reached, within some seconds.
    """

    def __init__(self, store: Any, option: str = OPTION) -> None:  # noqa: ANN401 - obstore is optional
        self._obstore = obstore_module("obstore", option)
        self._store, self._option = store, option
        self._readings: dict[str, Reading] = {}
        self._refreshing = threading.Lock()
        self._failed_at: float | None = None  # of the last reading, None where it succeeded

    @classmethod
    def open(
        cls, url: str, option: str = OPTION, timeout_s: int = TIMEOUT_S, retries: int = 1
    ) -> "Objects":
        """Open the store of a URL; raises SettingsError, naming the option, for one that can't be.

        `timeout_s` is that of one request, `retries` how often one that fails is sent again.
        """
        exceptions = obstore_module("obstore.exceptions", option)
        allow_http = os.environ.get(ALLOW_HTTP.get(url.partition(":")[0], ""), "")
        client = {
            "timeout": f"{timeout_s}s",
            "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
            "allow_http": allow_http.lower() in ("1", "true"),
        }
        retry = {"max_retries": retries, "retry_timeout": timedelta(seconds=2 * timeout_s)}
        try:
            store = obstore_module("obstore.store", option).from_url(
                url, client_options=client, retry_config=retry
            )
        except exceptions.BaseError as error:
            raise SettingsError(
                f"{option}: expected a bucket that its variables describe, "
                f"got {url!r}: {first_line(error)}"
            ) from error
        return cls(store, option)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object that does not exist; return whether it did not."""
        return self._put(path, data, "create")

    def replace(self, path: str, data: bytes, version: dict[str, str]) -> bool:
        """Put an object where it has this version still; return whether it had."""
        return self._put(path, data, dict(version))

    def overwrite(self, path: str, data: bytes) -> None:
        """Put an object, which may exist."""
        self._put(path, data, "overwrite")

    def read(self, path: str, known: StoredObject | None = None) -> StoredObject | None:
        """Read an object, None where it is missing; `known` is returned where it is unchanged."""
        exceptions = obstore_module("obstore.exceptions")
        options = {"if_none_match": known.version["e_tag"]} if known else None
        with self._available():
            try:
                result = self._obstore.get(self._store, path, options=options)
                data = bytes(result.bytes())
            except (exceptions.NotFoundError, FileNotFoundError):
                return None
            except exceptions.NotModifiedError:
                return known
        identity = {key: result.meta.get(key) for key in ("e_tag", "version")}
        version = {key: value for key, value in identity.items() if value}
        return StoredObject(data, version, result.meta["last_modified"].timestamp())

    def read_recent(self, path: str) -> StoredObject | None:
        """Read an object as it was at most `LAG_S` ago; while the store is down, as last read."""
        last = self._readings.get(path)
        if last is not None and self._is_recent(last):
            return last.found
        # While the store is down, one request at a time waits for an attempt, and no other.
        if not self._refreshing.acquire(blocking=last is None or self._failed_at is None):
            assert last is not None  # noqa: S101 - it would have waited
            return last.found
        try:
            last = self._readings.get(path)
            if last is not None and self._is_recent(last):
                return last.found
            return self._refresh(path, last)
        finally:
            self._refreshing.release()

    def _refresh(self, path: str, last: Reading | None) -> StoredObject | None:
        """Read an object again; while the store is down, return the last reading."""
        began = time.monotonic()
        try:
            found = self.read(path, last.found if last else None)
        except UnavailableError as error:
            if self._failed_at is None:
                log.warning("serving goes on with what is loaded: %s", error)
            self._failed_at = time.monotonic()
            if last is None:
                raise
            return last.found
        self._failed_at = None
        self._readings[path] = Reading(found, began)
        return found

    def forget(self, path: str) -> None:
        """Have the next `read_recent` read an object again."""
        self._readings.pop(path, None)

    def names(self, prefix: str) -> list[str]:
        """List the last parts of the paths directly below a prefix, sorted."""
        listed = self._list(prefix)
        paths = [*listed["common_prefixes"], *(each["path"] for each in listed["objects"])]
        return sorted(last_part(path) for path in paths)

    def modified_at(self, prefix: str) -> dict[str, float]:
        """Return when each object directly below a prefix was put, by the last part of its path.

        Times are seconds since the epoch by the store's clock.
        """
        objects = self._list(prefix)["objects"]
        return {last_part(each["path"]): each["last_modified"].timestamp() for each in objects}

    def delete(self, path: str) -> None:
        """Delete an object, which may be missing."""
        with self._available():
            try:
                self._obstore.delete(self._store, path)
            except FileNotFoundError:
                return

    def require_bucket(self) -> None:
        """Raise SettingsError for a bucket that does not exist."""
        path = probe_path()
        self.create(path, b"")
        self.delete(path)

    def require_conditions(self) -> None:
        """Raise SettingsError where the store ignores the conditions of a put or a read."""
        path = probe_path()
        try:
            ignored = self._find_ignored(path)
        finally:
            self.delete(path)
        if ignored:
            raise SettingsError(
                f"{self._option}: expected a store that honours conditional puts and reads, "
                f"concurrent ones too, got one that ignores {' and '.join(ignored)}"
            )

    def _find_ignored(self, path: str) -> list[str]:
        """List the conditions that the store ignores for an object that does not exist yet."""
        ignored = []
        if count_winners(lambda data: self.create(path, data)) != 1 or self.create(path, b"late"):
            ignored.append("If-None-Match: * of a put")
        found = self.read(path)
        if found is None or "e_tag" not in found.version:
            return [*ignored, "the request for an ETag"]
        if self.read(path, found) is not found:
            ignored.append("If-None-Match of a read")
        version = found.version
        winners = count_winners(lambda data: self.replace(path, data, version))
        if winners != 1 or self.replace(path, b"late", version):
            ignored.append("If-Match of a put")
        return ignored

    def _is_recent(self, reading: Reading) -> bool:
        now = time.monotonic()
        down = self._failed_at is not None and now - self._failed_at < RETRY_S
        return down or now - reading.at < LAG_S

    def _list(self, prefix: str) -> dict[str, Any]:
        """List the objects and the prefixes directly below a prefix."""
        with self._available():
            listed: dict[str, Any] = self._obstore.list_with_delimiter(self._store, prefix or None)
            return listed

    def _put(self, path: str, data: bytes, mode: str | dict[str, str]) -> bool:
        exceptions = obstore_module("obstore.exceptions")
        with self._available():
            try:
                self._obstore.put(self._store, path, data, mode=mode, use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return False
            except FileNotFoundError as error:
                raise SettingsError(
                    f"{self._option}: expected a bucket that exists, got none of this name"
                ) from error
            except exceptions.NotSupportedError as error:
                raise SettingsError(
                    f"{self._option}: expected a store with conditional puts, got one without"
                ) from error
        return True

    @contextmanager
    def _available(self) -> Iterator[None]:
        """Raise the failures of obstore as UnavailableError."""
        exceptions = obstore_module("obstore.exceptions")
        try:
            yield
        except (exceptions.BaseError, FileNotFoundError) as error:
            log.info("the object store failed: %s", first_line(error))
            raise UnavailableError(
                f"expected the object store to answer, got {type(error).__name__}"
            ) from error


def count_winners(put: Callable[[bytes], bool]) -> int:
    """Send `RACERS` conditional puts at once; return how many succeeded.

    Some servers check the condition and write in two steps, so that several succeed. The contents
    differ, since equal ones have one ETag.
    """
    start = threading.Barrier(RACERS)

    def race(_number: int) -> bool:
        start.wait()
        return put(secrets.token_bytes(16))

    with ThreadPoolExecutor(RACERS) as threads:
        return sum(threads.map(race, range(RACERS)))


def probe_path() -> str:
    """Return the random path of an object that is put on trial."""
    return f".probe-{secrets.token_hex(8)}"


def last_part(path: str) -> str:
    """Return the last part of an object's path or of a prefix."""
    return path.rstrip("/").rpartition("/")[2]


def obstore_module(name: str, option: str = OPTION) -> ModuleType:
    """Import a module of obstore; raises SettingsError without the extra `store`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"{option}: expected the packages of the extra segcal[store] for a bucket, "
            "got none of them"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; the others repeat it."""
    return str(error).partition("\n")[0]
