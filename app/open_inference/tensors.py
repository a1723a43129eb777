"""Tensors of the protocol: datatypes, and their values as bytes or as JSON.

Numbers are little-endian and row-major. An element of the datatype BYTES is a length, uint32, and
as many bytes; in JSON it is a string, read as base64.
"""

import base64
import binascii
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
        return BYTES if isinstance(self.values, list) else NAMES[self.values.dtype.newbyteorder("<")]

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
        elements = list(split_elements(name, data))
        if len(elements) != count:
            raise ArgumentError(f"{name}: expected {count} elements, got {len(elements)}")
        return Tensor(name, elements)
    dtype = np.dtype(DATATYPES[datatype])
    if len(data) != count * dtype.itemsize:
        raise ArgumentError(
            f"{name}: expected {count * dtype.itemsize} bytes for {datatype} {list(shape)}, "
            f"got {len(data)}"
        )
    return Tensor(name, np.frombuffer(data, dtype).reshape(shape))


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Tensor:
    """Read a tensor from nested or flat lists; raises ArgumentError where they do not match."""
    count = element_count(name, datatype, shape)
    if not isinstance(data, list):
        raise ArgumentError(f"{name}: expected data as a list or binary_data_size, got neither")
    if datatype == BYTES:
        elements = [from_base64(name, element) for element in data]
        if len(elements) != count:
            raise ArgumentError(f"{name}: expected {count} elements, got {len(elements)}")
        return Tensor(name, elements)
    dtype = np.dtype(DATATYPES[datatype])
    try:
        values = np.array(data)
        if values.dtype.kind not in "biuf" or (dtype.kind in "biu" and values.dtype.kind == "f"):
            raise ValueError(f"values of {values.dtype}")
        if dtype.kind in "iu" and values.size:
            bounds = np.iinfo(dtype)
            if values.min() < bounds.min or values.max() > bounds.max:
                raise ValueError(f"values in {values.min()}..{values.max()}")
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentError(f"{name}: expected data of {datatype}, got {error}") from error
    if values.size != count:
        raise ArgumentError(
            f"{name}: expected {count} values for shape {list(shape)}, got {values.size}"
        )
    return Tensor(name, values.astype(dtype).reshape(shape))


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
    except binascii.Error:
        pass
    raise ArgumentError(f"{name}: expected elements in base64, got {str(element)[:40]!r}")

