"""Folder or bucket that the replicas of a service share, for kept results and drift windows.

<id>.safetensors        a kept result, until it expires
drift/<replica>.json    the drift windows of a running replica
"""

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from app.errors import UnavailableError
from app.serving.drift_exchange import DriftExchange
from app.serving.drift_monitor import DriftMonitor
from app.serving.result_cache import ResultCache, Results
from app.serving.result_files import ResultFiles
from app.serving.result_objects import ResultObjects
from app.settings import Settings
from app.storage.objects import Objects
from app.storage.publications import FolderPublications, ObjectPublications

log = logging.getLogger(__name__)

DRIFT = "drift"
TIMEOUT_S = 5  # of one request: results are larger than the files of a version


def open_shared(settings: Settings) -> Path | Objects | None:
    """Open what the replicas share; None where there is nothing.

    Raises SettingsError for a bucket that does not exist. That of the artefacts has been checked.
    """
    location = settings.results_dir
    if not isinstance(location, str):
        return location
    objects = Objects.open(location, "SEGCAL_RESULTS_DIR", TIMEOUT_S)
    if not location.startswith(str(settings.artifacts_dir)):
        try:
            objects.require_bucket()
        except UnavailableError as error:
            log.warning("the object store can't be checked yet: %s", error)
    return objects


def open_results(settings: Settings, shared: Path | Objects | None) -> Results:
    """Open the kept results: in what the replicas share, or in memory."""
    if isinstance(shared, Objects):
        return ResultObjects(shared, settings.result_ttl_s, settings.result_bytes)
    if shared is not None:
        return ResultFiles(shared, settings.result_ttl_s, settings.result_bytes)
    return ResultCache(settings.result_ttl_s, settings.result_bytes)


def exchanging_drift(
    drift: DriftMonitor, shared: Path | Objects | None
) -> AbstractAsyncContextManager[None]:
    """Exchange drift windows during a block, over what the replicas share, if anything."""
    if isinstance(shared, Objects):
        return DriftExchange(drift, ObjectPublications(shared, DRIFT)).running()
    if shared is not None:
        return DriftExchange(drift, FolderPublications(shared / DRIFT)).running()
    return nullcontext()
