"""Interface between `ArtifactStore` and where the versions are stored: a folder or a bucket."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from app.schemas.calibrator import Manifest
from app.storage.manifest import VersionFiles

POINTER = "active"
# Older versions may have a plus, which a query must write as %2B, and end in 6 random digits.
ID_PATTERN = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9_+]+-(?:[0-9a-f]{6}|[0-9a-f]{12})")


class Lease(Protocol):
    """The right to publish the fit of a model, where other machines may fit it too."""

    def check(self) -> None:
        """Raise ConflictError once another fit holds the right."""


class Backend(Protocol):
    """Storage of all versions of all models, which any number of processes may share.

    Ids match `ID_PATTERN`. Changes of one model take effect one after the other. All methods raise
    UnavailableError where the storage can't be reached, and changes StorageError for a full disk.
    """

    def check(self) -> None:
        """Raise SettingsError where the storage can't keep changes apart."""

    def ids(self, model: str) -> list[str]:
        """List the ids of a model's versions, damaged ones too, newest first."""

    def model_of(self, version: str) -> str | None:
        """Return the model of a version; None where there is none."""

    def files(self, model: str, version: str) -> VersionFiles | None:
        """Return a version's files; None where there is none."""

    def active_id(self, model: str, *, latest: bool = False) -> str | None:
        """Read the id of the active version; None where none was activated.

        Raises ArtifactError for a damaged pointer. With `latest`, no earlier reading is used.
        """

    def activated(self, model: str) -> Iterator[str]:
        """Yield the ids of the activated versions, latest activation first."""

    def add(self, manifest: Manifest, contents: dict[str, bytes], lease: Lease | None) -> None:
        """Store a version's files atomically; a version that exists is left as it is."""

    def activate(self, model: str, version: str, reason: str, by: str, lease: Lease | None) -> None:
        """Set the active version atomically, and append it to the history.

        Raises NotFoundError, ArtifactError for a damaged version. A damaged pointer is replaced.
        """

    def delete(self, model: str, version: str) -> None:
        """Delete a version atomically, which may be damaged.

        Raises NotFoundError, ConflictError for the active one, ArtifactError for a damaged pointer.
        """

    def recover(self) -> None:
        """Complete or remove what interrupted changes left, of all models."""

    def lease(self, model: str, by: str) -> AbstractContextManager[Lease]:
        """Hold the lease of a model's fit; raises ConflictError while another fit holds it."""
