"""int8 models give the same answer on processors with and without VNNI.

One without it is emulated: `apt install qemu-user`. `make processors` runs this file.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.datasets.images import read_image
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("run_network.py")
WITHOUT_VNNI = "Haswell-noTSX"
EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
Logits = NDArray[np.float32]

pytestmark = [
    pytest.mark.skipif(
        platform.machine() not in {"x86_64", "AMD64"},
        reason="expected an x86-64 machine: others run no x86-64 Python in the emulator",
    ),
    pytest.mark.skipif(EMULATOR is None, reason="expected qemu-x86_64: apt install qemu-user"),
]


def compute(model: Path, inputs: Logits, folder: Path, *emulator: str) -> Logits:
    """Compute a network's output in a process of its own, on an emulated processor if given."""
    np.save(folder / "inputs.npy", inputs)
    outputs = folder / "outputs.npy"
    files = map(str, (SCRIPT, model, folder / "inputs.npy", outputs))
    command = [*emulator, sys.executable, *files]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(
        command,
        env=os.environ | one_thread,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    result: Logits = np.load(outputs)
    return result


def compute_without_vnni(model: Path, inputs: Logits, folder: Path) -> Logits:
    assert EMULATOR is not None
    return compute(model, inputs, folder, EMULATOR, "-cpu", WITHOUT_VNNI)


def softmax(logits: Logits) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return result


def convolution(weight: int) -> onnx.ModelProto:
    """Build a quantized 1x1 convolution of 64 channels, all weights equal, all scales 1."""
    arrays = {
        "one": np.float32(1),
        "output_scale": np.float32(16384),
        "zero": np.uint8(0),
        "zeros": np.zeros(16, np.int8),
        "ones": np.ones(16, np.float32),
        "weights": np.full((16, 64, 1, 1), weight, np.int8),
    }
    dequantize = "DequantizeLinear"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node(dequantize, ["xq", "one", "zero"], ["xd"]),
        helper.make_node(dequantize, ["weights", "ones", "zeros"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "output_scale", "zero"], ["cq"]),
        helper.make_node(dequantize, ["cq", "output_scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("weight", "saturates"), [(64, False), (127, True)])
def test_eight_bits_saturate_without_vnni_and_seven_do_not(tmp_path, weight, saturates):
    onnx.save(convolution(weight), tmp_path / "model.onnx")
    inputs = np.full((1, 64, 8, 8), 255, np.float32)
    exact = np.rint(64 * 255 * weight / 16384) * 16384
    outputs = compute_without_vnni(tmp_path / "model.onnx", inputs, tmp_path)
    assert (outputs != exact).any() == saturates


def test_bundled_int8_model_gives_the_same_labels_and_confidence_without_vnni(tmp_path):
    predictor = open_predictor(read_model_folder(ROOT / "models" / "camvid-street-int8"), "cpu", 1)
    image = read_image(ROOT / "examples" / "street.jpg", 1_000_000)
    inputs = predictor.first_window(image).numpy()
    here = compute(predictor.folder.path, inputs, tmp_path)
    there = compute_without_vnni(predictor.folder.path, inputs, tmp_path)
    assert (here.argmax(1) == there.argmax(1)).all()
    assert np.abs(softmax(here).max(1) - softmax(there).max(1)).max() <= 1 / 255
