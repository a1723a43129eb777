"""Bodies of the protocol: JSON, followed by the bytes of those tensors that are not in it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from app.errors import ArgumentError, UndecodableError
from app.open_inference.tensors import Tensor, from_bytes, from_json, to_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON, where tensors follow it
BINARY_SIZE = "binary_data_size"
VALUES_IN_JSON = 1 << 22  # larger outputs are sent as bytes only; a float in JSON takes 20 bytes

Parameters = dict[str, Any]


class Message(BaseModel):
    """A part of a body; keys of the protocol's other extensions are ignored, and so are nulls.

    KServe writes null for what it leaves out.
    """

    model_config = ConfigDict(protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}


class TensorMetadata(Message):
    """Name, datatype and shape of a tensor; in the metadata of a model -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class TensorMessage(TensorMetadata):
    """A tensor with its values as `data`, or with `binary_data_size` as bytes after the JSON."""

    parameters: Parameters = {}
    data: Any = None


class RequestedOutput(Message):
    """An output that a request asks for, as bytes where `binary_data` is true."""

    name: str
    parameters: Parameters = {}


class InferenceRequest(Message):
    """JSON of a request."""

    id: str = ""
    parameters: Parameters = {}
    inputs: list[TensorMessage]
    outputs: list[RequestedOutput] = []


class InferenceResponse(Message):
    """JSON of a response."""

    model_name: str
    model_version: str | None = None
    id: str = ""
    parameters: Parameters = {}
    outputs: list[TensorMessage]


class ModelMetadata(Message):
    """Metadata of a model: its versions, and its inputs and outputs."""

    name: str
    versions: list[str] = []
    platform: str = ""
    inputs: list[TensorMetadata] = []
    outputs: list[TensorMetadata] = []


M = TypeVar("M", bound=BaseModel)


def decode_body(body: bytes, header_length: str | None, kind: type[M]) -> tuple[M, memoryview]:
    """Parse the JSON of a body; return it and the bytes after it.

    Raises UndecodableError for what is no JSON, and ArgumentError for JSON of another form.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    try:
        values = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise UndecodableError(
            f"expected JSON in the first {length} bytes of the body, got others: {error}"
        ) from error
    return validate(kind, values), memoryview(body)[length:]


def validate(kind: type[M], values: object) -> M:
    """Validate parsed JSON; raises ArgumentError with the place of its first fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # raised by a validator of a schema
            raise ArgumentError(str(first["ctx"]["error"])) from error
        where = ".".join(map(str, first["loc"])) or "body"
        raise ArgumentError(f"{where}: {first['msg']}, got {str(first['input'])[:80]!r}") from error


def _length(text: str, size: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > size:
        raise ArgumentError(
            f"expected {HEADER_LENGTH} of at most the {size} bytes of the body, got {text[:40]!r}"
        )
    return int(text)


def read_tensors(messages: Sequence[TensorMessage], data: memoryview) -> Iterator[Tensor]:
    """Yield tensors from their messages and the bytes after the JSON; raises ArgumentError."""
    at = 0
    for message in messages:
        name, datatype, shape = message.name, message.datatype, message.shape
        size = message.parameters.get(BINARY_SIZE)
        if size is None:
            yield from_json(name, datatype, shape, message.data)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(data) - at:
            raise ArgumentError(
                f"{name}: expected a {BINARY_SIZE} of at most the {len(data) - at} bytes left in "
                f"the body, got {str(size)[:40]}"
            )
        yield from_bytes(name, datatype, shape, bytes(data[at : at + size]))
        at += size
    if at != len(data):
        raise ArgumentError(f"expected {at} bytes of tensors after the JSON, got {len(data)}")


def encode_body(
    header: Mapping[str, object], key: str, tensors: Sequence[tuple[Tensor, bool]]
) -> tuple[bytes, int | None]:
    """Return a body with tensors of numbers under a key, and the length of its JSON.

    Each tensor is in the JSON or, where its flag is true, as bytes after it. The length is None
    where no bytes follow. Raises ArgumentError for more values than JSON may hold.
    """
    entries: list[dict[str, object]] = []
    parts: list[bytes] = []
    for tensor, binary in tensors:
        entry: dict[str, object] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape),
        }  # fmt: skip
        if binary:
            parts.append(to_bytes(tensor.numbers))
            entry["parameters"] = {BINARY_SIZE: len(parts[-1])}
        elif tensor.numbers.size > VALUES_IN_JSON:
            raise ArgumentError(
                f"{tensor.name}: expected binary_data = true for more than {VALUES_IN_JSON} values "
                f"as JSON, got {tensor.numbers.size}"
            )
        else:
            entry["data"] = tensor.numbers.ravel().tolist()
        entries.append(entry)
    text = json.dumps({**header, key: entries}, separators=(",", ":")).encode()
    return b"".join([text, *parts]), len(text) if parts else None
