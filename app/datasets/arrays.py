"""Read and validate the headers of .npy and .safetensors files, for memory maps without pickle."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray

from app.errors import ArgumentError, UndecodableError

Kind = Literal["npy", "zip", "safetensors"]

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
MAX_NPY_HEADER = 64 << 10  # bytes; numpy rejects more than 10,000 characters
MAX_HEADER = 1 << 20  # bytes of a safetensors header; three tensors take 300
SAFETENSORS_TYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?",
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


@dataclass(frozen=True)
class ArrayFile:
    """Location of an array in a file; error messages use `name`."""

    name: str
    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    fortran: bool = False

    def map(self) -> NDArray[Any]:
        """Map the array for reading.

        Each call creates a new map: pages that were read count as memory of this process until
        their map is freed.
        """
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.name} {list(self.shape)}"


def kind_of(path: Path, name: str) -> Kind:
    """Return a file's kind by its first bytes; raises UndecodableError for other kinds."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(NPY_MAGIC):
        return "npy"
    if start.startswith(ZIP_MAGIC):
        return "zip"
    if start[8:9] == b"{":  # after the header's length
        return "safetensors"
    raise UndecodableError(
        f"{name}: expected a .npy, .npz, .safetensors or .zip file, "
        f"got {path.stat().st_size} bytes of another kind"
    )


def open_npy(path: Path, name: str) -> ArrayFile:
    """Read a .npy header; raises UndecodableError where it is damaged or the file too short."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(MAX_NPY_HEADER))  # numpy would read what the header declares
    try:
        version = np.lib.format.read_magic(start)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(start)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(start)
    except Exception as error:  # numpy evaluates the header as Python, which raises many types
        raise UndecodableError(
            f"{name}: expected a .npy header, got one that can't be read"
        ) from error
    offset = start.tell()
    if dtype.hasobject:
        raise UndecodableError(f"{name}: expected numbers, got pickled objects, which are not read")
    return _checked(ArrayFile(name, path, dtype, shape, offset, fortran))


def open_safetensors(path: Path, names: Sequence[str]) -> dict[str, ArrayFile]:
    """Read a .safetensors header and return those of the named arrays that the file contains.

    Raises UndecodableError for a damaged file and ArgumentError for a dtype unknown to numpy.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise UndecodableError(
                    f"{path.stem}: expected a header of at most {MAX_HEADER} bytes, got {length}"
                )
            header = json.loads(file.read(length))
        with safetensors.safe_open(path, "np"):
            pass  # validates that the tensors fill the file without gap or overlap
    except (safetensors.SafetensorError, ValueError) as error:
        raise UndecodableError(
            f"{path.stem}: expected a whole .safetensors file, got: {error}"
        ) from error
    found = {}
    for name in names:
        if name not in header:
            continue
        entry = header[name]
        if entry["dtype"] not in SAFETENSORS_TYPES:
            raise ArgumentError(f"{name}: expected numpy's numbers, got {entry['dtype']}")
        dtype: np.dtype[Any] = np.dtype(SAFETENSORS_TYPES[entry["dtype"]])
        offset = 8 + length + entry["data_offsets"][0]
        found[name] = _checked(ArrayFile(name, path, dtype, tuple(entry["shape"]), offset))
    return found


def _checked(array: ArrayFile) -> ArrayFile:
    """Validate an array against the size of its file.

    Raises ArgumentError for an empty array and UndecodableError for a short file.
    """
    if not array.shape or min(array.shape) < 1:
        raise ArgumentError(f"expected an array with values, got {array}")
    end = array.offset + math.prod(array.shape) * array.dtype.itemsize
    size = array.path.stat().st_size
    if array.dtype.itemsize == 0 or end > size:
        raise UndecodableError(f"expected {end} bytes for {array}, got {size}")
    return array
