"""Files of a bucket that are read and written whole, with the methods of `Path` that they need."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Protocol, Self

from app.errors import ArgumentError, SettingsError, UnavailableError
from app.storage.objects import Objects

SCHEMES = ("s3://", "gs://", "az://")
TIMEOUT_S = 60  # of one request: 32 MiB at 0.5 MiB/s
RETRIES = 3


class Named(Protocol):
    """A folder or a file."""

    @property
    def name(self) -> str:
        """The last part of its path."""


class ImageFile(Named, Protocol):
    """A file of a folder, or an object of a bucket."""

    @property
    def parent(self) -> Named:
        """The folder that it is in."""

    @property
    def stem(self) -> str:
        """The name without its ending."""

    @property
    def suffix(self) -> str:
        """The ending, with its dot."""

    def resolve(self) -> Self:
        """Return it with an absolute path."""

    def read_bytes(self) -> bytes:
        """Read the whole content; raises OSError where it can't be."""


@dataclass(frozen=True)
class ObjectFolder:
    """The objects directly below a URL's prefix, without a slash at its end.

    Actors may receive it pickled: each process opens the store by the variables of its environment.
    """

    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the folder of a URL; raises ArgumentError for one that is no bucket's."""
        if not text.startswith(SCHEMES):
            raise ArgumentError(
                f"expected a path, or a URL that begins with s3, gs or az, got {text[:200]}"
            )
        return cls(text.rstrip("/"))

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def objects(self) -> Objects:
        """The objects of the prefix."""
        return open_objects(self.url)

    def is_dir(self) -> bool:
        """Return true: a prefix without objects is an empty folder."""
        return True

    def resolve(self) -> Self:
        """Return the folder itself, as a URL is absolute."""
        return self

    def iterdir(self) -> Iterator["ObjectFile"]:
        """Yield the objects directly below the prefix, sorted.

        Raises SettingsError for a missing bucket, and UnavailableError.
        """
        try:
            names = self.objects.names("")
        except UnavailableError as error:
            if "NoSuchBucket" in str(error.__cause__):
                raise SettingsError(
                    f"expected a bucket that exists, got none for {self}"
                ) from error
            raise
        return (self / name for name in names)

    def __truediv__(self, name: str) -> "ObjectFile":
        return ObjectFile(self, name)

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, order=True)
class ObjectFile:
    """An object, by its folder and its name in it."""

    parent: ObjectFolder
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the object of a URL; raises ArgumentError for one that is no bucket's."""
        folder, _, name = text.rpartition("/")
        return cls(ObjectFolder.parse(folder), name)

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending, with its dot."""
        return PurePosixPath(self.name).suffix

    def resolve(self) -> Self:
        """Return the object itself, as a URL is absolute."""
        return self

    def read_bytes(self) -> bytes:
        """Read the object; raises FileNotFoundError, UnavailableError."""
        found = self.parent.objects.read(self.name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return found.data

    def write_bytes(self, data: bytes) -> None:
        """Put the object, in place of one that exists; raises UnavailableError."""
        self.parent.objects.overwrite(self.name, data)

    def unlink(self) -> None:
        """Delete the object, which may be missing; raises UnavailableError."""
        self.parent.objects.delete(self.name)

    def __str__(self) -> str:
        return f"{self.parent}/{self.name}"


@cache
def open_objects(url: str) -> Objects:
    """Open the objects of a URL once in a process, so that their requests share connections."""
    return Objects.open(url, url, TIMEOUT_S, RETRIES)
