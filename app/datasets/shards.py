"""Write the logits of a part of a labelled set to a folder, and open all parts as one set.

A set's images, sorted by stem, are divided into `total` blocks of consecutive images. A shard is
the folder of one block: the arrays of its images (see `StoredImage`) and shard.json, which names
the whole set, the model and the options of the fit. The folder is renamed to its final name when it
is complete, so that an interrupted process leaves no shard.
"""

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.datasets.images import Pair, content_hash
from app.datasets.stored_logits import StoredImage, StoredLogits, store_logits
from app.errors import ArgumentError
from app.inference.predictor import Predictor
from app.inference.preprocess import Geometry, Size
from app.schemas.fit import FitOptions
from app.storage.files import replace_file, storage, sync_folder

RECORD = "shard.json"
# Fields of a record that differ between the shards of one set.
OF_ONE_SHARD = frozenset({"number", "groups", "images"})


class ShardNumber(NamedTuple):
    """A shard's number, from 1, and the number of shards."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "3/8"; raises ArgumentError."""
        number, _, total = text.partition("/")
        if number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total):
            return cls(int(number), int(total))
        raise ArgumentError(f"expected a shard as 1/8 to 8/8, got {text[:80]!r}")

    def block(self, images: int) -> slice:
        """Return the shard's images of a set; raises ArgumentError for an empty shard."""
        if images < self.total:
            raise ArgumentError(f"expected at most {images} shards of {images} images, got {self}")
        return slice((self.number - 1) * images // self.total, self.number * images // self.total)

    @property
    def folder(self) -> str:
        """The name of the shard's folder."""
        return f"shard-{self.number}-of-{self.total}"

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


class ShardImage(BaseModel):
    """Hashes of an image's file and of its label map's, and the image's geometry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_hash: str
    label_hash: str
    image: Size
    resized: Size
    padded: Size


class ShardRecord(BaseModel):
    """Contents of shard.json: the set and the fit that the shard belongs to, and its images.

    `names_sha256` is the hash of the stems of the whole set, `groups` the group of each of the
    shard's images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    number: Annotated[int, Field(ge=1)]
    total: Annotated[int, Field(ge=1)]
    names_sha256: str
    model: str
    model_sha256: str
    ignore_index: int
    options: FitOptions
    groups: tuple[int, ...]
    images: tuple[ShardImage, ...]

    def difference(self, other: "ShardRecord") -> str | None:
        """Return the first field of the set or the fit in which two records differ."""
        fields = [name for name in type(self).model_fields if name not in OF_ONE_SHARD]
        return next((n for n in fields if getattr(self, n) != getattr(other, n)), None)


@dataclass(frozen=True)
class LabelledSet:
    """A whole labelled set: its images sorted by stem, their groups, and the label of void."""

    pairs: Sequence[Pair]
    groups: Sequence[int]
    ignore_index: int
    max_pixels: int

    @property
    def names_sha256(self) -> str:
        """The hash of the images' stems in order."""
        return hashlib.sha256(
            "\0".join(pair.image.stem for pair in self.pairs).encode()
        ).hexdigest()


def write_shard(
    shard: ShardNumber,
    data: LabelledSet,
    predictor: Predictor,
    options: FitOptions,
    parent: Path,
    progress: Callable[[str, float], None],
) -> Path:
    """Compute a shard into a folder of `parent` and return it; a shard that is there is kept.

    Raises ArgumentError where the folder holds another set, fit or image, and as `store_logits`.
    """
    block = shard.block(len(data.pairs))
    pairs, target = data.pairs[block], parent / shard.folder
    hashes = [(content_hash(pair.image), content_hash(pair.labels)) for pair in pairs]

    def record_of(images: Iterable[ShardImage]) -> ShardRecord:
        return ShardRecord(
            number=shard.number,
            total=shard.total,
            names_sha256=data.names_sha256,
            model=predictor.folder.card.name,
            model_sha256=predictor.folder.sha256,
            ignore_index=data.ignore_index,
            options=options,
            groups=tuple(data.groups[block]),
            images=tuple(images),
        )

    if target.exists():
        found = read_record(target)
        same = [(image.image_hash, image.label_hash) for image in found.images] == hashes
        if not same or record_of(found.images) != found:
            raise ArgumentError(
                f"expected no folder {target}, or this shard of the same images and options, got "
                f"another one; delete it to compute the shard again"
            )
        return target
    with storage("a shard"):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = parent / f".{shard.folder}-{secrets.token_hex(4)}"
        scratch.mkdir()
        try:
            stored = store_logits(
                predictor, pairs, data.ignore_index, data.max_pixels, progress, scratch
            )
            images = [_shard_image(one, *pair) for one, pair in zip(stored, hashes, strict=True)]
            replace_file(scratch / RECORD, record_of(images).model_dump_json().encode())
            if not target.exists():  # another process may have computed the same shard meanwhile
                scratch.rename(target)
                sync_folder(parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def open_shards(folders: Sequence[Path], num_classes: int) -> StoredLogits:
    """Open the shards of one set as a validation set in the order of the set.

    A shard that was computed twice is read once. Raises ArgumentError for missing shards, and for
    shards of different sets, fits or contents.
    """
    records = [read_record(folder) for folder in folders]
    first = records[0]
    found: dict[int, tuple[Path, ShardRecord]] = {}
    for folder, record in zip(folders, records, strict=True):
        if (field := first.difference(record)) is not None:
            raise ArgumentError(
                f"expected shards of one set and one fit, got another {field} in {folder.name}"
            )
        _, known = found.setdefault(record.number, (folder, record))
        if known != record:
            raise ArgumentError(
                f"expected the same images in both shards {record.number}/{record.total}, got "
                f"others in {folder}"
            )
    missing = [str(number) for number in range(1, first.total + 1) if number not in found]
    if missing:
        raise ArgumentError(
            f"expected the shards 1 to {first.total}, got none with the number {', '.join(missing)}"
        )
    ordered = [found[number] for number in sorted(found)]
    images = [
        StoredImage(
            folder, number, Geometry(image.image, image.resized, image.padded), image.image_hash
        )
        for folder, record in ordered
        for number, image in enumerate(record.images)
    ]
    groups = [group for _, record in ordered for group in record.groups]
    return StoredLogits(num_classes, images, groups)


def find_shards(paths: Sequence[Path]) -> list[Path]:
    """List shards: each path is one, or a folder of shards; raises ArgumentError for neither."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / RECORD).is_file() else sorted(path.glob(f"shard-*/{RECORD}"))
        if not inside:
            raise ArgumentError(f"expected a shard or a folder of shards, got {path}")
        found += [file.parent if file.name == RECORD else file for file in inside]
    return found


def read_record(folder: Path) -> ShardRecord:
    """Read a shard's record; raises ArgumentError for a missing or damaged one."""
    try:
        return ShardRecord.model_validate_json((folder / RECORD).read_bytes())
    except OSError as error:
        raise ArgumentError(f"expected {RECORD} in {folder}, got: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise ArgumentError(
            f"expected a shard's record in {folder / RECORD}, got: {problem['msg']} at "
            f"{'.'.join(map(str, problem['loc']))}"
        ) from error


def _shard_image(stored: StoredImage, image_hash: str, label_hash: str) -> ShardImage:
    geometry = stored.geometry
    return ShardImage(
        image_hash=image_hash,
        label_hash=label_hash,
        image=geometry.image,
        resized=geometry.resized,
        padded=geometry.padded,
    )
