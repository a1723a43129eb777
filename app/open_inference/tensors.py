"""Tensors of the protocol: datatypes, and their values as bytes or as JSON.

Numbers are little-endian and row-major. An element of the datatype BYTES is a length, uint32, and
as many bytes; in JSON it is a string, read as base64.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ArgumentError

BYTES = "BYTES"
LENGTH_BYTES = 4
DATATYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
NAMES = {np.dtype(code): name for name, code in DATATYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A named tensor: an array of numbers, or a list of the elements of the datatype BYTES."""

    name: str
    values: NDArray[Any] | list[bytes]

    @property
    def datatype(self) -> str:
        """The protocol's name of the datatype."""
        return (
            BYTES if isinstance(self.values, list) else NAMES[self.values.dtype.newbyteorder("<")]
        )

    @property
    def numbers(self) -> NDArray[Any]:
        """The values of a tensor of numbers."""
        if isinstance(self.values, list):
            raise TypeError("expected a tensor of numbers, got one of BYTES")
        return self.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions; elements of BYTES are in one."""
        return (len(self.values),) if isinstance(self.values, list) else self.values.shape


def to_bytes(values: NDArray[Any]) -> bytes:
    """Return the bytes of an array of numbers."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """Read a tensor from its bytes; raises ArgumentError where they do not match the shape."""
    count = element_count(name, datatype, shape)
    if datatype == BYTES:
        return from_elements(name, shape, list(split_elements(name, data)))
    dtype = np.dtype(DATATYPES[datatype])
    if len(data) != count * dtype.itemsize:
        raise ArgumentError(
            f"{name}: expected {count * dtype.itemsize} bytes for {datatype} {list(shape)}, "
            f"got {len(data)}"
        )
    return Tensor(name, np.frombuffer(data, dtype).reshape(shape))


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Tensor:
    """Read a tensor from nested or flat lists; raises ArgumentError where they do not match."""
    if not isinstance(data, list):
        raise ArgumentError(f"{name}: expected data as a list or binary_data_size, got neither")
    if datatype == BYTES:
        return from_elements(name, shape, [from_base64(name, element) for element in data])
    return from_numbers(name, datatype, shape, data)


def from_elements(name: str, shape: Sequence[int], elements: list[bytes]) -> Tensor:
    """Return a tensor of BYTES; raises ArgumentError for another number of elements."""
    count = element_count(name, BYTES, shape)
    if len(elements) != count:
        raise ArgumentError(f"{name}: expected {count} elements, got {len(elements)}")
    return Tensor(name, elements)


def from_numbers(name: str, datatype: str, shape: Sequence[int], data: list[object]) -> Tensor:
    """Read nested or flat lists of numbers; raises ArgumentError for others or too large ones."""
    count = element_count(name, datatype, shape)
    dtype = np.dtype(DATATYPES[datatype])
    try:
        values = np.array(data)
    except ValueError as error:  # lists of several lengths
        raise ArgumentError(f"{name}: expected lists of equal length, got {error}") from error
    whole = dtype.kind in "iu"
    if values.size and values.dtype.kind not in ("biu" if whole else "biuf"):
        raise ArgumentError(f"{name}: expected data of {datatype}, got {values.dtype}")
    if whole and values.size and not holds(dtype, values):
        raise ArgumentError(
            f"{name}: expected data of {datatype}, got values in {values.min()}..{values.max()}"
        )
    if values.size != count:
        raise ArgumentError(
            f"{name}: expected {count} values for shape {list(shape)}, got {values.size}"
        )
    return Tensor(name, values.astype(dtype).reshape(shape))


def holds(dtype: np.dtype[Any], values: NDArray[Any]) -> bool:
    """Return whether a type of whole numbers has all of the values."""
    bounds = np.iinfo(dtype)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max)


def element_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Return the number of elements; raises ArgumentError for another datatype or a wrong shape."""
    if datatype != BYTES and datatype not in DATATYPES:
        known = [BYTES, *DATATYPES]
        raise ArgumentError(f"{name}: expected one of the datatypes {known}, got {datatype!r}")
    if any(side < 0 for side in shape):
        raise ArgumentError(f"{name}: expected sizes of 0 or more, got {list(shape)}")
    return math.prod(shape)


def split_elements(name: str, data: bytes) -> Iterator[bytes]:
    """Yield the elements of a tensor of BYTES; raises ArgumentError for one that breaks off."""
    at = 0
    while at < len(data):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if at > len(data):
            raise ArgumentError(
                f"{name}: expected each element as its length and as many bytes, "
                f"got {len(data)} bytes where {at} are needed"
            )
        yield data[start:at]


def from_base64(name: str, element: object) -> bytes:
    """Decode an element of BYTES in JSON; raises ArgumentError."""
    try:
        if isinstance(element, str):
            return base64.b64decode(element, validate=True)
    except ValueError:
        pass
    raise ArgumentError(f"{name}: expected elements in base64, got {str(element)[:40]!r}")
