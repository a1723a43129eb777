"""An upload opens as a validation set, or is rejected with an error before any fit."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.calibration.dataset import IGNORE, ValidationSet, groups_of
from app.datasets.archives import MAX_DIRECTORY
from app.datasets.uploads import Limits, check, open_upload, unpack
from app.errors import ArgumentError, InputError, TooLargeError, UndecodableError
from app.inference.model_card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from tests.factories.models import write_onnx_model
from tests.factories.service import encoded, solid
from tests.factories.validation_data import (
    VOID,
    archive,
    as_table,
    npy,
    npz,
    overconfident,
    tensors,
)

LIMITS = Limits(unpacked_bytes=10_000_000, image_bytes=100_000, image_pixels=10_000)
LOGITS, LABELS = overconfident(images=4, height=2, width=3)
ROWS, ROW_LABELS, INDEX = as_table(LOGITS, LABELS)
NAN = LOGITS.copy()
NAN[0, 1, np.nonzero(LABELS[0] != VOID)[0][0], np.nonzero(LABELS[0] != VOID)[1][0]] = np.nan


def no_predictor() -> Predictor:
    raise AssertionError("arrays need no model")


def write_upload(folder: Path, **files: bytes) -> Path:
    """Write an upload's fields as files, as the multipart parser does."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def opened(folder: Path, limits: Limits = LIMITS, /, **files: bytes) -> ValidationSet:
    """Unpack, check and open an upload."""
    write_upload(folder, **files)
    unpack(folder, limits)
    check(folder, 3, VOID, limits)
    return open_upload(folder, 3, VOID, 10_000, no_predictor, lambda _stage, _fraction: None)


def reference(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.from_numpy(LABELS[index]).long()
    return torch.from_numpy(LOGITS[index]), labels.where(labels != VOID, IGNORE)


def assert_dense(data: ValidationSet) -> None:
    assert (len(data), data.num_classes) == (len(LOGITS), 3)
    for index in range(len(data)):
        logits, labels = reference(index)
        assert torch.equal(data[index].logits.float(), logits)
        assert torch.equal(data[index].labels, labels)


def assert_table(data: ValidationSet) -> None:
    """Assert that each image has its own pixels, in any order."""
    assert (len(data), data.num_classes) == (len(LOGITS), 3)
    for index in range(len(data)):
        logits, labels = reference(index)
        expected = sorted(zip(logits.flatten(1).T.tolist(), labels.flatten().tolist(), strict=True))
        got = sorted(zip(data[index].logits.T.tolist(), data[index].labels.tolist(), strict=True))
        assert got == expected


# Accepted uploads


@pytest.mark.parametrize(
    "files",
    [
        {"logits": npz(logits=LOGITS, labels=LABELS)},
        {"logits": npz(True, logits=LOGITS, labels=LABELS)},
        {"logits": npz(True, logits=LOGITS), "labels": npz(labels=LABELS)},
        {"logits": npy(LOGITS), "labels": npy(LABELS)},
        {"logits": npy(LOGITS), "labels": tensors(labels=LABELS)},
        {"logits": tensors(logits=LOGITS, labels=LABELS)},
        {"logits": tensors(logits=LOGITS, labels=LABELS, other=LABELS)},
        {"logits": npy(np.asfortranarray(LOGITS)), "labels": npy(LABELS.astype(">i2"))},
        {"logits": npy(LOGITS.astype(">f4")), "labels": npy(LABELS.astype(np.uint64))},
    ],
    ids=[
        "npz", "deflated", "two npz", "two npy", "mixed", "safetensors", "with others", "fortran",
        "big-endian",
    ],
)  # fmt: skip
def test_maps_are_read_in_every_format(tmp_path, files):
    assert_dense(opened(tmp_path / "upload", **files))


@pytest.mark.parametrize("seed", [None, 1], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
def test_tables_are_read_in_every_format_and_row_order(tmp_path, kind, seed):
    rows, labels, index = as_table(LOGITS, LABELS, seed)
    arrays = {"logits": rows, "labels": labels, "image_index": index - 7}
    files = {
        "npz": lambda: {"logits": npz(True, **arrays)},
        "npy": lambda: {name: npy(values) for name, values in arrays.items()},
        "safetensors": lambda: {"logits": tensors(**arrays)},
    }[kind]()

    assert_table(opened(tmp_path / "upload", **files))


GROUP_INDEX = np.array([1, 1, 0, 0])


@pytest.mark.parametrize("inside", [True, False])
def test_groups_of_maps_and_tables_are_read(tmp_path, inside):
    for name, arrays in {
        "maps": {"logits": LOGITS, "labels": LABELS, "group_index": GROUP_INDEX},
        "table": {"logits": ROWS, "labels": ROW_LABELS, "image_index": INDEX,
                  "group_index": GROUP_INDEX[INDEX]},
    }.items():  # fmt: skip
        files = (
            {"logits": npz(False, **arrays)} if inside else {k: npy(v) for k, v in arrays.items()}
        )
        assert list(groups_of(opened(tmp_path / name, **files))) == GROUP_INDEX.tolist()


def test_without_an_index_each_image_is_a_group(tmp_path):
    maps = opened(tmp_path / "label_files", logits=npz(logits=LOGITS, labels=LABELS))
    assert list(groups_of(maps)) == [0, 1, 2, 3]


def test_half_precision_is_kept(tmp_path):
    data = opened(tmp_path / "upload", logits=npy(LOGITS.astype(np.float16)), labels=npy(LABELS))

    assert data[0].logits.dtype == torch.float16
    assert torch.allclose(data[0].logits.float(), reference(0)[0], atol=2e-2)


def test_labels_at_image_size_are_sampled_at_cell_centres(tmp_path):
    # Cells of 3x3 pixels with the expected label in the middle and another class around it.
    large = (LABELS.repeat(3, axis=1).repeat(3, axis=2) + 1) % 3
    large[:, 1::3, 1::3] = LABELS

    assert_dense(opened(tmp_path / "upload", logits=npy(LOGITS), labels=npy(large)))


def test_logits_of_unlabelled_pixels_are_not_checked(tmp_path):
    logits = LOGITS.copy()
    logits.transpose(0, 2, 3, 1)[LABELS == VOID] = np.nan
    data = opened(tmp_path / "upload", logits=npy(logits), labels=npy(LABELS))

    assert torch.equal(data[0].labels, reference(0)[1])


def test_ignore_index_may_be_any_integer(tmp_path):
    labels = np.where(LABELS == VOID, -100, LABELS.astype(np.int64))
    folder = write_upload(tmp_path / "upload", logits=npy(LOGITS), labels=npy(labels))
    unpack(folder, LIMITS)

    assert check(folder, 3, -100, LIMITS).pixels == (LABELS != VOID).sum()
    with pytest.raises(ArgumentError, match=r"labels in 0\.\.2 or 255 for void, got -100 in image"):
        check(folder, 3, VOID, LIMITS)


def test_upload_opens_twice_with_equal_contents(tmp_path):
    opened(tmp_path / "upload", logits=npz(True, logits=LOGITS, labels=LABELS))
    files = sorted(path.name for path in (tmp_path / "upload").iterdir())
    data = open_upload(
        tmp_path / "upload", 3, VOID, 10_000, no_predictor, lambda _stage, _fraction: None
    )

    assert files == ["labels.npy", "logits.npy"]
    assert_dense(data)


# Rejected uploads


def cut(data: bytes, fraction: float = 0.6) -> bytes:
    return data[: int(len(data) * fraction)]


def safetensors_with_wrong_shape() -> bytes:
    data = tensors(logits=LOGITS, labels=LABELS)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["logits"]["shape"][0] = 1000
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + length :]


def changed_header(**entries: object) -> bytes:
    """Encode a .safetensors file with changed header entries of its logits."""
    data = tensors(logits=LOGITS, labels=LABELS)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["logits"] |= entries
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + length :]


def npy_with_wrong_shape() -> bytes:
    return npy(LOGITS).replace(b"(4, 3, 2, 3)", b"(9, 3, 2, 3)")


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    return buffer.getvalue()


def wrong_crc() -> bytes:
    data = bytearray(npz(logits=LOGITS, labels=LABELS))
    data[200] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("files", "kind", "sentence"),
    [
        ({"logits": b"what is this"}, UndecodableError, "12 bytes of another kind"),
        ({"logits": b""}, UndecodableError, "0 bytes of another kind"),
        ({"logits": pickled(), "labels": npy(LABELS)}, UndecodableError, "pickled objects"),
        (
            {"logits": archive({"logits.npy": pickled(), "labels.npy": npy(LABELS)})},
            UndecodableError,
            "pickled objects",
        ),
        (
            {"logits": cut(npz(logits=LOGITS, labels=LABELS))},
            UndecodableError,
            "whole zip archive",
        ),
        ({"logits": wrong_crc()}, UndecodableError, "whole zip archive"),
        (
            {"logits": archive({"a.txt": b"hello"})},
            ArgumentError,
            r"logits or labels or image_index or group_index inside, got \['a.txt'\]",
        ),
        ({"logits": cut(npy(LOGITS)), "labels": npy(LABELS)}, UndecodableError, "expected 416 b"),
        (
            {"logits": npy_with_wrong_shape(), "labels": npy(LABELS)},
            UndecodableError,
            r"\[9, 3, 2, 3\], got",
        ),
        ({"logits": cut(npy(LOGITS), 0.05), "labels": npy(LABELS)}, UndecodableError, "header"),
        ({"logits": safetensors_with_wrong_shape()}, UndecodableError, "whole .safetensors file"),
        (
            {"logits": cut(tensors(logits=LOGITS, labels=LABELS))},
            UndecodableError,
            "whole .safetensors",
        ),
        ({"logits": b"\xff" * 7 + b"\x7f{}"}, UndecodableError, "header of at most 1048576 bytes"),
        ({"logits": b"\x02" + b"\0" * 7 + b"{}" + b"."}, UndecodableError, "whole .safetensors"),
        ({"labels": npy(LABELS)}, ArgumentError, "got no logits"),
        ({"logits": npy(LOGITS)}, ArgumentError, "got no labels"),
        ({"image_index": npy(INDEX)}, ArgumentError, "no labels and no logits"),
        (
            {"logits": npz(logits=LOGITS, labels=LABELS), "labels": npy(LABELS)},
            ArgumentError,
            "expected labels once",
        ),
        (
            {"logits": tensors(logits=LOGITS, labels=LABELS), "labels": npy(LABELS)},
            ArgumentError,
            "expected labels once",
        ),
        (
            {"logits": npy(LOGITS.astype(np.float64)), "labels": npy(LABELS)},
            ArgumentError,
            "float16 or float32, got logits float64",
        ),
        (
            {"logits": npy(LOGITS), "labels": npy(LABELS.astype(np.float32))},
            ArgumentError,
            "expected labels of integers, got labels float32",
        ),
        (
            {"logits": npy(LOGITS[:, :2]), "labels": npy(LABELS)},
            ArgumentError,
            r"the model's 3 classes, got logits float32 \[4, 2, 2, 3\]",
        ),
        ({"logits": npy(LOGITS[0]), "labels": npy(LABELS)}, ArgumentError, r"\[N,K,h,w\] or"),
        ({"logits": npy(LOGITS), "labels": npy(LABELS[:3])}, ArgumentError, r"labels \[N,H,W\]"),
        (
            {"logits": npy(LOGITS), "labels": npy(LABELS[:, :1])},
            ArgumentError,
            "on the logits' grid or at the images' size",
        ),
        (
            {"logits": npy(LOGITS), "labels": npy(LABELS.repeat(4, 2))},
            ArgumentError,
            "on the logits' grid or at the images' size",
        ),
        ({"logits": npy(LOGITS), "labels": npy(LABELS + 3)}, ArgumentError, "got [345] in image 0"),
        ({"logits": npy(NAN), "labels": npy(LABELS)}, ArgumentError, "NaN or infinity at 1 in im"),
        (
            {"logits": npy(np.where(LOGITS > 5, np.inf, LOGITS)), "labels": npy(LABELS)},
            ArgumentError,
            "NaN or infinity",
        ),
        ({"logits": npy(LOGITS[:1]), "labels": npy(LABELS[:1])}, ArgumentError, "2 images .*got 1"),
        (
            {"logits": npy(LOGITS), "labels": npy(np.full_like(LABELS, VOID))},
            ArgumentError,
            "2 images .*got 0",
        ),
        ({"logits": npy(LOGITS[:0]), "labels": npy(LABELS[:0])}, ArgumentError, "with values"),
        (
            {"logits": npy(LOGITS), "labels": npy(LABELS), "image_index": npy(INDEX)},
            ArgumentError,
            "image_index with a table",
        ),
        ({"logits": npy(ROWS), "labels": npy(ROW_LABELS)}, ArgumentError, r"image_index \[M\]"),
        (
            {"logits": npy(ROWS), "labels": npy(ROW_LABELS[1:]), "image_index": npy(INDEX)},
            ArgumentError,
            r"expected labels \[M\] for the rows",
        ),
        (
            {"logits": npy(LOGITS), "labels": npy(LABELS), "group_index": npy(GROUP_INDEX[1:])},
            ArgumentError,
            r"group_index \[N\]",
        ),
        (
            {"logits": npy(LOGITS), "labels": npy(LABELS), "group_index": npy(GROUP_INDEX / 1)},
            ArgumentError,
            "group_index of integers",
        ),
        (
            {
                "logits": npy(ROWS),
                "labels": npy(ROW_LABELS),
                "image_index": npy(INDEX),
                "group_index": npy(np.arange(len(INDEX))),
            },
            ArgumentError,
            "rows of an image to be of one group, got image 0 in groups 0 and 1",
        ),
        (
            {"logits": npy(ROWS), "labels": npy(ROW_LABELS), "image_index": npy(INDEX / 1)},
            ArgumentError,
            "image_index of integers",
        ),
        (
            {"logits": npy(ROWS), "labels": npy(ROW_LABELS), "image_index": npy(INDEX * 0)},
            ArgumentError,
            "2 images .*got 1",
        ),
        (
            {"logits": npy(ROWS * np.nan), "labels": npy(ROW_LABELS), "image_index": npy(INDEX)},
            ArgumentError,
            "NaN or infinity",
        ),
        (
            {"logits": npy(ROWS), "labels": npy(ROW_LABELS + 3), "image_index": npy(INDEX)},
            ArgumentError,
            r"in rows 0 to 23",
        ),
    ],
)
def test_invalid_upload_is_rejected(
    tmp_path, files: dict[str, bytes], kind: type[InputError], sentence: str
):
    with pytest.raises(kind, match=sentence):
        opened(tmp_path / "upload", **files)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_probabilities_are_rejected_and_their_logarithms_accepted(tmp_path, kind):
    fractions = torch.from_numpy(LOGITS).float().softmax(dim=1).numpy()
    for number, maps in enumerate(
        (fractions, np.log(fractions), fractions * 0 + np.eye(3)[1][:, None, None])
    ):
        rows = maps.transpose(0, 2, 3, 1).reshape(-1, 3)
        as_map = {"logits": npy(maps.astype(kind)), "labels": npy(LABELS)}
        as_table = {
            "logits": npy(rows.astype(kind)), "labels": npy(ROW_LABELS), "image_index": npy(INDEX),
        }  # fmt: skip
        for form, files in (("map", as_map), ("table", as_table)):
            if number == 0:
                with pytest.raises(ArgumentError, match="expected logits, got probabilities"):
                    opened(tmp_path / f"{form}{number}", **files)
            else:
                opened(tmp_path / f"{form}{number}", **files)


@pytest.mark.parametrize(
    "entries",
    [
        {"data_offsets": [8, LOGITS.nbytes + 8]},  # overlaps the labels
        {"data_offsets": [10**9, 10**9 + LOGITS.nbytes]},
        {"data_offsets": [2**63, 2**64 - 1]},
        {"data_offsets": [LOGITS.nbytes, 0]},
        {"data_offsets": [-8, LOGITS.nbytes - 8]},
        {"data_offsets": [0]},
        {"data_offsets": "all"},
        {"dtype": "F64"},
        {"dtype": "F16"},
        {"dtype": "complex"},
        {"dtype": None},
        {"shape": [2**40, 2**40, 2, 3]},
        {"shape": [-4, 3, 2, 3]},
        {"shape": "4x3"},
    ],
    ids=str,
)
def test_damaged_safetensors_header_is_rejected(tmp_path, entries):
    with pytest.raises(UndecodableError, match=r"expected a whole \.safetensors file"):
        opened(tmp_path / "upload", logits=changed_header(**entries))


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"logits": 1}', b'{"logits": {}}', b"{" * 500])
def test_safetensors_header_of_another_form_is_rejected(tmp_path, header):
    data = struct.pack("<Q", len(header)) + header + LOGITS.tobytes()
    with pytest.raises(InputError):
        opened(tmp_path / "upload", logits=data, labels=npy(LABELS))


def test_one_class_only_is_enough(tmp_path):
    data = opened(tmp_path / "upload", logits=npy(LOGITS), labels=npy(np.zeros_like(LABELS)))

    assert {int(label) for image in range(len(data)) for label in data[image].labels.unique()} == {
        0
    }


def test_bfloat16_is_rejected_by_name(tmp_path):
    data = tensors(logits=LOGITS.astype(np.float16), labels=LABELS).replace(b'"F16"', b'"BF16"')
    length = struct.unpack("<Q", data[:8])[0]

    with pytest.raises(ArgumentError, match="got BF16"):
        opened(tmp_path / "upload", logits=struct.pack("<Q", length + 1) + data[8:])


def test_archive_is_rejected_once_it_exceeds_the_byte_budget(tmp_path):
    bomb = archive({"logits.npy": npy(np.zeros((1000, 3, 30, 30), np.float32))})
    assert len(bomb) < 50_000

    with pytest.raises(TooLargeError, match="at most 1000000 bytes once unpacked"):
        opened(tmp_path / "upload", Limits(1_000_000, 1_000_000, 10_000), logits=bomb)
    written = sum(path.stat().st_size for path in (tmp_path / "upload").iterdir())
    assert written < 2_000_000


def test_archive_with_too_large_a_directory_is_rejected(tmp_path):
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, MAX_DIRECTORY + 1, 0, 0)

    with pytest.raises(TooLargeError, match="zip directory of at most"):
        opened(tmp_path / "upload", logits=b"PK\3\4" + end)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_uncommon_compression_is_rejected(tmp_path, method):
    with pytest.raises(UndecodableError, match="stored or deflated"):
        opened(tmp_path / "upload", logits=archive({"logits.npy": npy(LOGITS)}, method))


# Images


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = write_onnx_model(tmp_path_factory.mktemp("models"), "tiny")
    return open_predictor(read_model_folder(folder), "cpu", 1)


def label_map(value: int = 1, height: int = 8, width: int = 12) -> bytes:
    return encoded(Image.fromarray(np.full((height, width), value, np.uint8)))


IMAGE_FILES = {"a.png": encoded(solid((255, 0, 0))), "b.jpg": encoded(solid((0, 255, 0)), "JPEG")}
LABEL_MAPS = {"a.png": label_map(0), "b.png": label_map(1)}


def open_images(
    folder: Path, predictor: Predictor, images: bytes, labels: bytes, limits: Limits = LIMITS
) -> ValidationSet:
    write_upload(folder, images=images, labels=labels)
    unpack(folder, limits)
    check(folder, 3, VOID, limits)
    return open_upload(folder, 3, VOID, 10_000, lambda: predictor, lambda _stage, _fraction: None)


@pytest.mark.parametrize("groups", [None, [5, 4]])
def test_groups_of_images_are_in_the_order_of_their_stems(tmp_path, predictor, groups):
    index = {} if groups is None else {"group_index": npy(np.array(groups))}
    write_upload(tmp_path / "upload", **index)
    data = open_images(tmp_path / "upload", predictor, archive(IMAGE_FILES), archive(LABEL_MAPS))
    assert list(groups_of(data)) == (groups or [0, 1])


@pytest.mark.parametrize("groups", [np.zeros(3, int), np.zeros(2), np.zeros((2, 1), int)])
def test_groups_of_wrong_length_are_rejected(tmp_path, predictor, groups):
    write_upload(tmp_path / "upload", group_index=npy(groups))
    with pytest.raises(ArgumentError, match="group_index of integers"):
        open_images(tmp_path / "upload", predictor, archive(IMAGE_FILES), archive(LABEL_MAPS))


def test_logits_of_images_are_computed_by_the_model(tmp_path, predictor):
    data = open_images(tmp_path / "upload", predictor, archive(IMAGE_FILES), archive(LABEL_MAPS))

    assert len(data) == 2
    assert data[0].logits[:, 0, 0].tolist() == [4, 0, 0]
    assert set(data[0].labels.flatten().tolist()) == {0}
    assert set(data[1].labels.flatten().tolist()) == {1}


def test_archive_names_are_not_used_as_paths(tmp_path, predictor):
    images = {
        f"../../{tmp_path}/x/../a.png": IMAGE_FILES["a.png"],
        "/etc/b.jpg": IMAGE_FILES["b.jpg"],
    }
    litter = {"__MACOSX/._a.png": b"x", ".hidden.png": b"x", "Thumbs.db": b"x", "folder/": b""}
    labels = {f"deep/er/{name}": data for name, data in LABEL_MAPS.items()}
    upload = tmp_path / "in" / "upload"
    upload.mkdir(parents=True)
    data = open_images(upload, predictor, archive(images | litter), archive(labels))

    assert len(data) == 2
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "in/upload/image_files/000000.png", "in/upload/image_files/000001.jpg",
        "in/upload/image_names.json",
        "in/upload/label_files/000000.png", "in/upload/label_files/000001.png",
    ]  # fmt: skip


def prepare(folder: Path) -> None:
    unpack(folder, LIMITS)
    check(folder, 3, VOID, LIMITS)


def link_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def encrypted_archive() -> bytes:
    data = bytearray(archive(IMAGE_FILES))
    start = data.find(b"PK\1\2")
    data[start + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("images", "labels", "kind", "sentence"),
    [
        (npy(LOGITS), archive(LABEL_MAPS), UndecodableError, "images: expected a zip archive"),
        (archive(IMAGE_FILES), npy(LABELS), UndecodableError, "labels: expected a zip archive"),
        (cut(archive(IMAGE_FILES)), archive(LABEL_MAPS), UndecodableError, "whole zip archive"),
        (link_archive(), archive(LABEL_MAPS), ArgumentError, "got the link 'a.png'"),
        (encrypted_archive(), archive(LABEL_MAPS), UndecodableError, "unencrypted files"),
        (
            archive({**IMAGE_FILES, "x/a.jpg": IMAGE_FILES["b.jpg"]}),
            archive(LABEL_MAPS),
            ArgumentError,
            "images: expected one file for each stem, got 'a' twice",
        ),
        (
            archive(IMAGE_FILES),
            archive({"a.png": label_map(), "c.png": label_map()}),
            ArgumentError,
            r"2 without a partner, such as \['b', 'c'\]",
        ),
        (archive({}), archive({}), ArgumentError, "got 0 images"),
        (
            archive({"a.png": IMAGE_FILES["a.png"]}),
            archive({"a.png": label_map()}),
            ArgumentError,
            "at least 2 images",
        ),
        (
            archive(IMAGE_FILES),
            archive({"a.png": label_map(0), "b.png": label_map(7)}),
            ArgumentError,
            r"b.png: expected labels in 0\.\.2 or 255 for void, got 7\.\.7",
        ),
        (
            archive(IMAGE_FILES),
            archive({"a.png": label_map(0), "b.png": label_map(0, 12, 8)}),
            ArgumentError,
            r"b.png: expected labels of \(8, 12\)",
        ),
        (
            archive(IMAGE_FILES),
            archive({"a.png": IMAGE_FILES["a.png"], "b.png": label_map()}),
            ArgumentError,
            "a.png: expected an indexed or grey label map, got mode RGB",
        ),
        (
            archive({**IMAGE_FILES, "a.png": b"no image"}),
            archive(LABEL_MAPS),
            UndecodableError,
            "a.png: expected an image",
        ),
        (
            archive({**IMAGE_FILES, "a.png": encoded(solid((0, 0, 0), 200, 200))}),
            archive(LABEL_MAPS),
            TooLargeError,
            "at most 10000 pixels",
        ),
        (
            archive({**IMAGE_FILES, "a.png": b"\0" * 200_000}),
            archive(LABEL_MAPS),
            TooLargeError,
            "a: expected at most 100000 bytes, got 200000",
        ),
    ],
)
def test_invalid_archives_are_rejected(
    tmp_path, images: bytes, labels: bytes, kind: type[InputError], sentence: str
):
    folder = write_upload(tmp_path / "upload", images=images, labels=labels)
    with pytest.raises(kind, match=sentence):
        prepare(folder)


def test_truncated_image_is_named_on_opening(tmp_path, predictor):
    images = {**IMAGE_FILES, "a.png": encoded(solid((9, 9, 9), 8, 12), "BMP")[:-40]}

    with pytest.raises(UndecodableError, match=r"^a\.png: expected a whole image"):
        open_images(tmp_path / "upload", predictor, archive(images), archive(LABEL_MAPS))


def test_images_require_labels_and_exclude_logits(tmp_path):
    for files in (
        {"images": archive(IMAGE_FILES)},
        {"images": archive(IMAGE_FILES), "labels": archive(LABEL_MAPS), "logits": npy(LOGITS)},
    ):
        folder = write_upload(tmp_path / str(len(files)), **files)
        with pytest.raises(ArgumentError, match="images with labels and nothing else"):
            unpack(folder, LIMITS)


def test_exif_orientation_applies_to_image_and_labels(tmp_path, predictor):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned: Any = encoded(solid((255, 0, 0), 12, 8), "JPEG", exif=exif)
    images = {"a.jpg": turned, "b.jpg": IMAGE_FILES["b.jpg"]}
    data = open_images(tmp_path / "upload", predictor, archive(images), archive(LABEL_MAPS))

    assert data[0].logits.shape == data[1].logits.shape
