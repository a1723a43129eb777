"""Model cards: `card.toml` beside a model file, with its input policy, classes and licence."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from app.errors import ModelError
from app.imaging.tiff_bands import Scaling
from app.inference.taxonomies import TAXONOMIES
from app.inference.upstream import RemoteModel, fetch_metadata, identity

CARD = "card.toml"
Triple = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=16384)]
Level = Annotated[int, Field(ge=0, le=65535)]
Band = Annotated[int, Field(ge=1, le=256)]
Resample = Literal["bilinear", "bicubic", "area"]
Activation = Literal["none", "softmax", "sigmoid"]

DEFAULT_IGNORE_INDEX, LARGEST_IGNORE_INDEX = 255, 65535

MAX_MEAN, MAX_STD = 1.0, 4.0  # larger ones are on the 0..255 scale


class StrictModel(BaseModel):
    """An immutable record that rejects unknown keys, so that a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShortSide(StrictModel):
    """Target length of an image's shorter side, in pixels."""

    short_side: Side


class InputPolicy(StrictModel):
    """Preprocessing of images; mean and std are RGB on the 0..1 scale, sizes in pixels.

    `channels` is the order in which the network gets the colours; mean and std stay RGB. `fit`
    "letterbox" resizes to the largest size within `size` that keeps the aspect ratio. `range` has
    the 16-bit values of black and white, `bands` the numbers of a TIFF's bands for red, green and
    blue, from 1.
    """

    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    size: Literal["native"] | tuple[Side, Side] | ShortSide = "native"
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 32
    channels: Literal["rgb", "bgr"] = "rgb"
    range: tuple[Level, Level] | None = None
    bands: tuple[Band, Band, Band] | None = None
    resample: Resample = "bilinear"
    fit: Literal["stretch", "letterbox"] = "stretch"
    mode: Literal["whole", "slide"] = "whole"
    crop: tuple[Side, Side] | None = None
    stride: tuple[Side, Side] | None = None
    blend: Literal["hann", "mean"] = "hann"

    @field_validator("size", mode="wrap")
    @classmethod
    def _check_size(cls, value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:  # lists the faults of all three forms
            raise ValueError(
                'expected "native", [H, W] or {short_side = N}, with sides in 1..16384, '
                f"got {value!r}"
            ) from error

    @property
    def scaling(self) -> Scaling:
        """Conversion of images with 16 bits or several bands."""
        return Scaling(self.range, self.bands)

    @model_validator(mode="after")
    def _check_range(self) -> "InputPolicy":
        if self.range is not None and self.range[0] == self.range[1]:
            raise ValueError(f"expected different values in range, got {list(self.range)}")
        return self

    @model_validator(mode="after")
    def _check_std(self) -> "InputPolicy":
        if min(self.std) <= 0:
            raise ValueError(f"expected std above 0, got {list(self.std)}")
        return self

    @model_validator(mode="after")
    def _check_scale(self) -> "InputPolicy":
        """Reject mean and std on the 0..255 scale; the std that goes with such a mean may be 1."""
        large_mean, large_std = max(map(abs, self.mean)) > MAX_MEAN, max(self.std) > MAX_STD
        if large_mean or large_std:
            mean = _divided(self.mean) if large_mean else list(self.mean)
            divides_std = large_std or (large_mean and min(self.std) >= 1)
            std = _divided(self.std) if divides_std else list(self.std)
            raise ValueError(
                f"expected mean and std on the 0..1 scale, mean = {mean} and std = {std}, got "
                f"values on the 0..255 scale: {list(self.mean)} and {list(self.std)}"
            )
        return self

    @model_validator(mode="after")
    def _check_fit(self) -> "InputPolicy":
        if self.fit == "letterbox" and not isinstance(self.size, tuple):
            raise ValueError(f'expected size = [H, W] with fit = "letterbox", got {self.size!r}')
        return self

    @model_validator(mode="after")
    def _check_mode(self) -> "InputPolicy":
        given = {"crop", "stride", "blend"} & self.model_fields_set
        if self.mode == "whole" and given:
            raise ValueError(f'expected {sorted(given)} only with mode = "slide", got mode "whole"')
        if self.mode == "slide":
            self._check_windows()
        return self

    def _check_windows(self) -> None:
        if self.crop is None or self.stride is None:
            missing = "crop" if self.crop is None else "stride"
            raise ValueError(
                f'expected crop = [H, W] and stride = [h, w] with mode = "slide", got no {missing}'
            )
        got = f"crop {list(self.crop)} and stride {list(self.stride)}"
        if self.stride[0] > self.crop[0] or self.stride[1] > self.crop[1]:
            raise ValueError(f"expected a stride of at most the crop, got {got}")
        if any(side % self.multiple_of for side in (*self.crop, *self.stride)):
            raise ValueError(
                f"expected crop and stride in multiples of multiple_of = {self.multiple_of}, "
                f"got {got}"
            )


def _divided(values: Triple) -> list[float]:
    """Return values on the 0..255 scale on that of 0..1, to six digits."""
    return [float(f"{value / 255:.6g}") for value in values]


class ClassInfo(StrictModel):
    """One class's name and colour (`#rrggbb`)."""

    name: Annotated[str, Field(min_length=1)]
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue in 0..255."""
        value = int(self.color[1:], 16)
        return value >> 16, value >> 8 & 255, value & 255


class OutputPolicy(StrictModel):
    """Classes by channel of the logits; `ignore_index` is the label of void pixels.

    It is 255 by default, and 65535 where 255 is the label of a class.
    `name` is the output with the logits, where a file has several; `activation` is what the network
    applies to its logits. With `reduce_zero_label` label maps count classes from 1, and 0 is void.
    A taxonomy defines the classes, and both values of labels unless they are given.
    """

    name: Annotated[str, Field(min_length=1)] | None = None
    activation: Activation = "none"
    reduce_zero_label: bool = False
    ignore_index: Annotated[int, Field(ge=0, le=LARGEST_IGNORE_INDEX)] = DEFAULT_IGNORE_INDEX
    taxonomy: str | None = None
    classes: Annotated[tuple[ClassInfo, ...], Field(max_length=65534)] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_classes(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        taxonomy = data.get("taxonomy")
        if (taxonomy is None) == (not data.get("classes")):
            raise ValueError("expected either classes or a taxonomy, got both or neither")
        if taxonomy is None:
            return data
        if not isinstance(taxonomy, str) or taxonomy not in TAXONOMIES:
            raise ValueError(f"expected one of {sorted(TAXONOMIES)} as taxonomy, got {taxonomy!r}")
        known = TAXONOMIES[taxonomy]
        classes = [{"name": name, "color": color} for name, color in known.classes.items()]
        labels = {key: getattr(known, key) for key in ("ignore_index", "reduce_zero_label")}
        return {**labels, **data, "classes": classes}

    @model_validator(mode="before")
    @classmethod
    def _fill_ignore_index(cls, data: object) -> object:
        """Fill in 65535 where the default is a class, whose pixels would be void."""
        if not isinstance(data, dict) or "ignore_index" in data:
            return data
        classes = data.get("classes", ())
        labels = len(classes) if isinstance(classes, list | tuple) else 0
        if labels + bool(data.get("reduce_zero_label")) <= DEFAULT_IGNORE_INDEX:
            return data
        return {**data, "ignore_index": LARGEST_IGNORE_INDEX}

    @model_validator(mode="after")
    def _check_names(self) -> "OutputPolicy":
        first: dict[str, int] = {}
        for index, entry in enumerate(self.classes):
            if first.setdefault(entry.name, index) != index:
                raise ValueError(
                    f"expected a name of its own for each class, got {entry.name!r} for classes "
                    f"{first[entry.name]} and {index}"
                )
        return self


class Card(StrictModel):
    """The contents of `card.toml`.

    `file` is the model's file. With `kind = "oip"` it is `model`, by default in the server's own
    choice of version, on an inference server at `url`.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    title: str = ""
    license: str = ""
    source: str = ""
    kind: Literal["file", "oip"] = "file"
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(onnx|pt2|pt)$")] | None = (
        Field(default=None, validate_default=True)
    )
    url: Annotated[str, Field(pattern=r"^https?://[^/?#\s]+[^?#\s]*$")] | None = Field(
        default=None, validate_default=True
    )
    model: Annotated[str, Field(min_length=1)] | None = Field(default=None, validate_default=True)
    version: Annotated[str, Field(min_length=1)] | None = None
    input: InputPolicy = InputPolicy()
    output: OutputPolicy
    default: bool = False  # for requests without a model, if SEGCAL_DEFAULT_MODEL is unset
    metrics: dict[str, float | int | str] = {}

    @field_validator("file", "url", "model", "version")
    @classmethod
    def _check_kind(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind", "file")
        belongs = (info.field_name == "file") == (kind == "file")
        if belongs and value is None:
            raise ValueError("expected a value, got none")
        if not belongs and value is not None:
            raise ValueError(f'expected no such key with kind = "{kind}", got {value!r}')
        return value

    @property
    def remote(self) -> RemoteModel | None:
        """The model on an inference server, None for one in a file."""
        if self.url is None or self.model is None:
            return None
        return RemoteModel(self.name, self.url, self.model, self.version)


@dataclass(frozen=True)
class ModelFolder:
    """A card with the path of its model file.

    `sha256` is the model's identity (see `model_sha256`), `weights_sha256` the hash of its file.
    A remote model has its folder as the path, and the hash is that of the server's metadata.
    """

    card: Card
    path: Path
    sha256: str
    weights_sha256: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.card.output.classes)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Colours by class, each red, green and blue in 0..255."""
        return [entry.rgb for entry in self.card.output.classes]


def default_name(folders: Mapping[str, ModelFolder], configured: str | None) -> str | None:
    """Return the model for requests without one: as configured, the only one, or by its card.

    None if there are several models and not exactly one card has `default = true`.
    """
    if configured is not None:
        return configured
    marked = [name for name, folder in folders.items() if folder.card.default]
    candidates = list(folders) if len(folders) == 1 else marked
    return candidates[0] if len(candidates) == 1 else None


def read_model_folder(folder: Path) -> ModelFolder:
    """Read and validate one model's folder; raises ModelError, with the first fault.

    Fetches the metadata of a remote model; raises UpstreamError where its server does not answer.
    """
    card = read_card(folder)
    if (remote := card.remote) is not None:
        weights = identity(remote, fetch_metadata(remote))
        return ModelFolder(card, folder, model_sha256(weights, card), weights)
    path = folder / str(card.file)
    if not path.is_file():
        raise ModelError(f"{folder.name}: expected the file {card.file}, got none")
    weights = weights_sha256(path)
    return ModelFolder(card, path, model_sha256(weights, card), weights)


def read_card(folder: Path) -> Card:
    """Read and validate the card of a model's folder; raises ModelError, with the first fault."""
    try:
        card = Card.model_validate(tomllib.loads((folder / CARD).read_text("utf-8")))
    except FileNotFoundError as error:
        raise ModelError(f"{folder.name}: expected a {CARD}, got none") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"{folder.name}: expected TOML in {CARD}, got: {error}") from error
    except ValidationError as error:
        raise ModelError(f"{folder.name}: {_first_error(error)}") from error
    if card.name != folder.name:
        raise ModelError(f"{folder.name}: expected the folder's name in {CARD}, got {card.name!r}")
    return card


def _first_error(error: ValidationError) -> str:
    """Return the place and reason of a validation's first error."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or CARD
    if first["type"] == "missing":
        return f"{where}: expected a value, got none"
    if first["type"] == "extra_forbidden":
        return f"{where}: expected no such key, got {first['input']!r}"
    if first["type"] == "value_error":  # raised by a validator of this module
        return f"{where}: {first['ctx']['error']}"
    return f"{where}: {first['msg']}, got {first['input']!r}"


def model_sha256(weights: str, card: Card) -> str:
    """Compute a model's identity: the SHA-256 of its weights' hash and of the card's policies.

    Every value of the tables `[input]` and `[output]` that shapes logits or labels is hashed, so
    the form of the card, its texts and the classes' colours do not matter. Values at their default
    are left out: a key that a later release adds does not change the identity of existing models.
    """
    output = card.output.model_dump(
        mode="json", exclude_defaults=True, exclude={"taxonomy", "classes"}
    )
    output["classes"] = [entry.name for entry in card.output.classes]
    tables = {"input": card.input.model_dump(mode="json", exclude_defaults=True), "output": output}
    canonical = json.dumps(tables, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{weights}\n{canonical}".encode("ascii")).hexdigest()


def weights_sha256(path: Path) -> str:
    """Compute the SHA-256 of a model file, or of the hashes of all its files in hex."""
    if len(files := model_files(path)) == 1:
        return file_sha256(path)
    hashes = "".join(map(file_sha256, files))
    return hashlib.sha256(hashes.encode("ascii")).hexdigest()


def model_files(path: Path) -> list[Path]:
    """List a model file and the files of weights beside it, whose names begin with its name."""
    return [path, *sorted(p for p in path.parent.glob(f"{path.name}[._]*") if p.is_file())]


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
