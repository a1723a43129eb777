"""Files, objects of buckets, manifests and versioned calibrators."""

from app.storage.artifacts import ArtifactStore
from app.storage.backend import Lease
from app.storage.files import (
    is_full,
    locked,
    replace_file,
    storage,
    sync_folder,
    try_locked,
    write_json,
)
from app.storage.manifest import StoredCalibrator, new_id, timestamp
from app.storage.object_files import ImageFile, ObjectFile, ObjectFolder
from app.storage.objects import Objects
from app.storage.publications import FolderPublications, ObjectPublications, Publications

__all__ = [
    "ArtifactStore",
    "FolderPublications",
    "ImageFile",
    "Lease",
    "ObjectFile",
    "ObjectFolder",
    "ObjectPublications",
    "Objects",
    "Publications",
    "StoredCalibrator",
    "is_full",
    "locked",
    "new_id",
    "replace_file",
    "storage",
    "sync_folder",
    "timestamp",
    "try_locked",
    "write_json",
]
