"""Bodies of the Open Inference Protocol: tensors as JSON and as bytes after it."""

import base64
import json

import numpy as np
import pytest

from app.errors import ArgumentError, UndecodableError
from app.open_inference import (
    InferenceRequest,
    ModelMetadata,
    Tensor,
    decode_body,
    encode_body,
    read_tensors,
)


def read(inputs, data=b"", header_length=None):
    text = json.dumps({"inputs": inputs}).encode()
    length = str(len(text)) if header_length is None else header_length
    message, rest = decode_body(text + data, length, InferenceRequest)
    return list(read_tensors(message.inputs, rest))


def entry(datatype, shape, **values):
    return {"name": "x", "datatype": datatype, "shape": shape, **values}


def binary(size):
    return {"parameters": {"binary_data_size": size}}


def test_numbers_are_little_endian_and_row_major():
    (tensor,) = read([entry("FP32", [1, 2], **binary(8))], b"\0\0\x80\x3f\0\0\0\xc0")
    np.testing.assert_array_equal(tensor.values, np.array([[1, -2]], np.float32))
    (tensor,) = read([entry("INT16", [2], **binary(4))], b"\x01\x00\xff\xff")
    assert tensor.values.tolist() == [1, -1]


def test_elements_of_bytes_have_their_length_before_them():
    data = b"\x02\0\0\0ab" + b"\0\0\0\0" + b"\x01\0\0\0c"
    (tensor,) = read([entry("BYTES", [3], **binary(len(data)))], data)
    assert tensor.values == [b"ab", b"", b"c"]


def test_tensors_follow_each_other_and_those_in_json_have_no_bytes():
    first, second, third = read(
        [
            entry("UINT8", [1], **binary(1)),
            entry("UINT8", [2, 1], data=[[7], [8]]),
            entry("UINT8", [2], **binary(2)),
        ],
        b"\x01\x02\x03",
    )
    assert first.values.tolist() == [1]
    assert second.values.tolist() == [[7], [8]]
    assert third.values.tolist() == [2, 3]


def test_elements_of_bytes_in_json_are_base64():
    (tensor,) = read([entry("BYTES", [1], data=[base64.b64encode(b"\xff\xd8").decode()])])
    assert tensor.values == [b"\xff\xd8"]


@pytest.mark.parametrize(
    ("tensor", "data", "message"),
    [
        (entry("FP32", [2], **binary(4)), b"\0" * 4, "expected 8 bytes for FP32"),
        (entry("FP32", [1], **binary(5)), b"\0" * 4, "at most the 4 bytes left"),
        (entry("FP32", [1], **binary(-1)), b"", "at most the 0 bytes left"),
        (entry("FP32", [1], **binary("4")), b"\0" * 4, "at most the 4 bytes left"),
        (entry("FP32", [1], **binary(4)), b"\0" * 5, "expected 4 bytes of tensors after the JSON"),
        (entry("FP32", [-1], data=[1]), b"", "expected sizes of 0 or more"),
        (entry("FP32", [1 << 62, 1 << 62], **binary(4)), b"\0" * 4, "x: expected"),
        (entry("TEXT", [1], data=[1]), b"", "expected one of the datatypes"),
        (entry("UINT8", [1], data=[256]), b"", "got values in 256..256"),
        (entry("UINT8", [1], data=[-1]), b"", "got values in -1..-1"),
        (entry("UINT8", [1], data=[0.5]), b"", "expected data of UINT8, got float64"),
        (entry("UINT8", [1], data=["1"]), b"", "expected data of UINT8"),
        (entry("UINT8", [2], data=[[1], [1, 2]]), b"", "expected lists of equal length"),
        (entry("UINT8", [2], data=[1]), b"", "expected 2 values"),
        (entry("UINT8", [1]), b"", "expected data as a list"),
        (entry("BYTES", [2], **binary(5)), b"\x01\0\0\0a", "expected 2 elements, got 1"),
        (entry("BYTES", [1], **binary(5)), b"\x02\0\0\0a", "got 5 bytes where 6 are needed"),
        (entry("BYTES", [1], **binary(3)), b"\x02\0\0", "where 6 are needed"),
        (entry("BYTES", [1], data=["é"]), b"", "expected elements in base64"),
        (entry("BYTES", [1], data=[["YQ=="]]), b"", "expected elements in base64"),
    ],
)
def test_tensor_that_contradicts_its_description_is_rejected(tensor, data, message):
    with pytest.raises(ArgumentError, match=message):
        read([tensor], data)


@pytest.mark.parametrize("length", ["-1", "1000", "x", "²", ""])
def test_header_length_outside_of_the_body_is_rejected(length):
    with pytest.raises(ArgumentError, match="Inference-Header-Content-Length of at most"):
        read([], header_length=length)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_other_bytes_than_json_are_undecodable(body):
    with pytest.raises(UndecodableError, match="expected JSON"):
        decode_body(body, None, InferenceRequest)


def test_encoded_body_is_read_back_with_each_tensor_as_asked_for():
    mask = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    confidence = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    tensors = [(Tensor("mask", mask), True), (Tensor("confidence", confidence), False)]
    body, length = encode_body({"id": "7"}, "inputs", tensors)
    assert body[length:] == bytes(range(6))
    message, rest = decode_body(body, str(length), InferenceRequest)
    first, second = read_tensors(message.inputs, rest)
    assert message.id == "7"
    np.testing.assert_array_equal(first.values, mask)
    np.testing.assert_array_equal(second.values, confidence)
    assert (first.datatype, second.datatype) == ("UINT8", "FP32")


def test_body_without_bytes_has_no_header_length():
    values = np.zeros(3, np.uint16)
    body, length = encode_body({}, "outputs", [(Tensor("mask", values), False)])
    assert length is None
    assert json.loads(body)["outputs"][0]["data"] == [0, 0, 0]


def test_null_is_as_left_out():
    body = b'{"name": "m", "versions": null, "platform": null, "inputs": null, "outputs": []}'
    assert decode_body(body, None, ModelMetadata)[0] == ModelMetadata(name="m")


def test_many_values_are_only_sent_as_bytes():
    values = np.zeros((1 << 22) + 1, np.uint8)
    with pytest.raises(ArgumentError, match="expected binary_data = true"):
        encode_body({}, "outputs", [(Tensor("mask", values), False)])
    assert encode_body({}, "outputs", [(Tensor("mask", values), True)])[1] is not None
