"""Mutated uploads are accepted or rejected with an error of their own, and nothing else.

`FUZZ_EXAMPLES` sets the number of examples of each kind; example n is mutated by the seed n.
"""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from app.datasets.uploads import Limits, check, unpack
from app.errors import ArgumentError, InputError
from tests.factories.service import encoded
from tests.factories.validation_data import VOID, archive, npy, npz
from tests.fuzz.inputs import FIELDS, LABEL_MAP, LABELS, LOGITS, UPLOADED_IMAGES
from tests.fuzz.mutations import mutated

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
LIMITS = Limits(unpacked_bytes=1_000_000, image_bytes=100_000, image_pixels=10_000)


def read_upload(folder: Path, files: dict[str, bytes]) -> type[Exception] | None:
    """Unpack and check an upload as the service does; return the type of an InputError."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rejected = None
    try:
        unpack(folder, LIMITS)
        check(folder, 3, VOID, LIMITS)
    except InputError as error:
        rejected = error
    assert str(folder) not in str(rejected)
    return type(rejected) if rejected else None


@pytest.mark.parametrize("kind", FIELDS)
def test_mutated_upload_is_accepted_or_rejected(tmp_path, kind):
    field, files = FIELDS[kind]
    assert read_upload(tmp_path / "whole", files) is None
    rejected = sum(
        read_upload(tmp_path / str(seed), {**files, field: mutated(files[field], seed)}) is not None
        for seed in range(EXAMPLES)
    )
    assert rejected > EXAMPLES // 10


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")])
def test_mutated_label_map_is_accepted_or_rejected(tmp_path, ending, kind):
    whole = encoded(Image.fromarray(np.ones((8, 12), np.uint8)), kind)
    for seed in range(EXAMPLES):
        maps = {f"{name}.{ending}": mutated(whole, seed) for name in "ab"}
        read_upload(
            tmp_path / str(seed), {"images": archive(UPLOADED_IMAGES), "labels": archive(maps)}
        )


def npy_of_header(text: bytes, size: int | None = None) -> bytes:
    """Build a .npy file of version 2.0 from a header, whose declared length is `size`."""
    declared = len(text) if size is None else size
    return b"\x93NUMPY\x02\0" + struct.pack("<I", declared) + text


# Found by the fuzz tests above.
FOUND = {
    "unclosed brackets": {"logits": npy_of_header(b"{'descr': '<f4', 'shape': (4, " + b"[" * 300)},
    "null byte": {"logits": npy_of_header(b"{'descr': '<f4', 'fortran_order': False\0}")},
    "unclosed text": {"logits": npy_of_header(b"{'descr': '<f4', \n")},
    "declared header of 4 GiB": {"logits": npy_of_header(b"{}", 0xFFFFFFFF)},
    "brackets in safetensors": {"logits": struct.pack("<Q", 9000) + b"{" + b"[" * 8999},
    "entry before the file's start": {
        # The central directory's offset, of which zipfile subtracts its own count.
        "logits": npz(logits=LOGITS, labels=LABELS)[:-6] + b"\xff\xff\xff\x7f\0\0"
    },
}


@pytest.mark.parametrize("name", FOUND)
def test_upload_found_by_fuzzing_is_rejected(tmp_path, name):
    assert read_upload(tmp_path / "upload", {"labels": npy(LABELS), **FOUND[name]}) is not None


def test_encapsulated_postscript_reaches_no_ghostscript(tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    postscript = encoded(Image.fromarray(np.ones((8, 12), np.uint8)), "EPS")
    maps = {"a.png": LABEL_MAP, "b.png": postscript}
    files = {"images": archive(UPLOADED_IMAGES), "labels": archive(maps)}

    assert read_upload(tmp_path / "upload", files) is ArgumentError
    assert not called.exists()
