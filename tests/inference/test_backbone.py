import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from app.errors import ArgumentError, ModelError
from app.inference.backbone import first_line, nvidia_device_present, open_backbone
from tests.factories.models import TorchNetwork, expected_logits, onnx_network
from tests.inference.conftest import KINDS

without_device = pytest.mark.skipif(nvidia_device_present(), reason="there is a CUDA device")


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 3, 8, 12), dtype=np.float32)


def model_file(folders: dict[str, Path], kind: str) -> Path:
    return folders[kind] / f"model.{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_backbone_returns_the_logits_of_the_network(tiny_folders, kind, images):
    logits = open_backbone(model_file(tiny_folders, kind), "cpu", 1)(images)
    assert logits.dtype == np.float32
    assert logits.shape == (2, 3, 4, 6)
    assert np.allclose(logits, expected_logits(images), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 3, 64, 10)])
def test_backbone_takes_any_size(tiny_folders, kind, shape):
    images = np.random.default_rng(1).random(shape, dtype=np.float32)
    logits = open_backbone(model_file(tiny_folders, kind), "cpu", 1)(images)
    assert np.allclose(logits, expected_logits(images), atol=1e-6)


@without_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_device_is_the_cpu_without_cuda(tiny_folders, kind, device):
    assert open_backbone(model_file(tiny_folders, kind), device, 1).device == "cpu"


@without_device
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_without_a_device_is_rejected(tiny_folders, kind):
    with pytest.raises(ModelError) as raised:
        open_backbone(model_file(tiny_folders, kind), "cuda", 1)
    assert str(raised.value) == (
        f"model.{kind}: expected a CUDA device, as SEGCAL_DEVICE says, got none"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"no network at all"])
def test_file_that_is_no_network_is_rejected(tmp_path, kind, content):
    path = tmp_path / f"model.{kind}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"^model.{kind}: expected a model that loads, got: .+"):
        open_backbone(path, "cpu", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_file_is_rejected(tiny_folders, tmp_path, kind):
    path = tmp_path / f"model.{kind}"
    whole = model_file(tiny_folders, kind).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="expected a model that loads"):
        open_backbone(path, "cpu", 1)


@pytest.mark.parametrize(("kind", "ending"), [("onnx", "pt"), ("pt", "onnx"), ("onnx", "pt2")])
def test_file_with_a_wrong_ending_is_rejected(tiny_folders, tmp_path, kind, ending):
    path = tmp_path / f"model.{ending}"
    shutil.copy(model_file(tiny_folders, kind), path)
    with pytest.raises(ModelError, match="expected a model that loads"):
        open_backbone(path, "cpu", 1)


def test_pickled_module_is_rejected_without_unpickling(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(TorchNetwork(), path)  # a pickle can run any code: only TorchScript is loaded
    with pytest.raises(ModelError, match="expected a model that loads"):
        open_backbone(path, "cpu", 1)


def test_network_of_two_inputs_is_rejected(graph_folder):
    folder = graph_folder(
        "two (float[n,3,h,w] image, float[n,3,h,w] depth) => (float[n,3,h,w] logits)"
        "{ logits = Add(image, depth) }"
    )
    with pytest.raises(ModelError, match=r"^model.onnx: expected one input, got 2$"):
        open_backbone(folder / "model.onnx", "cpu", 1)


def test_half_precision_network_has_single_precision_input_and_output(graph_folder):
    folder = graph_folder(
        "half (float16[n,3,h,w] image) => (float16[n,3,h,w] logits) { logits = Neg(image) }"
    )
    logits = open_backbone(folder / "model.onnx", "cpu", 1)(np.full((1, 3, 2, 2), 0.5, np.float32))
    assert logits.dtype == np.float32
    assert (logits == -0.5).all()


def test_first_of_several_outputs_holds_the_logits(graph_folder):
    folder = graph_folder(
        "auxiliary (float[n,3,h,w] image) => (float[n,3,h,w] logits, float[n,3,h,w] other)"
        "{ logits = Neg(image) other = Abs(image) }"
    )
    logits = open_backbone(folder / "model.onnx", "cpu", 1)(np.ones((1, 3, 2, 2), np.float32))
    assert (logits == -1).all()


def test_entry_out_of_a_torch_networks_dict_holds_the_logits(tmp_path, images):
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchNetwork()

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.network(images), "aux": images}

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Wrapped(), (torch.from_numpy(images),)), path)
    logits = open_backbone(path, "cpu", 1)(images)
    assert np.allclose(logits, expected_logits(images), atol=1e-6)


def test_tiny_network_is_valid_onnx():
    onnx.checker.check_model(onnx_network(300, 4), full_check=True)


def test_first_line_of_an_error_without_message_is_its_repr():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("  ")) == "ValueError('  ')"
    assert first_line(AssertionError()) == "AssertionError()"


def test_exported_program_rejects_a_size_out_of_its_range(tiny_folders):
    backbone = open_backbone(model_file(tiny_folders, "pt2"), "cpu", 1)
    with pytest.raises(ArgumentError, match=r"a size the model takes, got 2x9000 as its input: "):
        backbone(np.zeros((1, 3, 9000, 2), np.float32))
    assert backbone(np.zeros((1, 3, 8, 12), np.float32)).shape == (1, 3, 4, 6)
