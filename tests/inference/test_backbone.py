import pickle
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.torch
import torch

from app.errors import ArgumentError, ModelError
from app.inference.backbone import OnnxBackbone, first_line, open_backbone
from app.inference.cuda import describe_missing_cuda, nvidia_device_present
from app.inference.threads import ActiveRequests
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
@pytest.mark.parametrize(
    ("requests", "threads"), [(0, 9), (1, 9), (2, 3), (3, 3), (4, 1), (9, 1), (100, 1)]
)
def test_concurrent_requests_share_the_threads(tiny_folders, requests, threads):
    active = ActiveRequests()
    backbone = OnnxBackbone(model_file(tiny_folders, "onnx"), "cpu", 9, active)
    with ExitStack() as stack:
        for _ in range(requests):
            stack.enter_context(active.enter())
        options = backbone._session_for_caller().get_session_options()
    assert options.intra_op_num_threads == threads


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
    built_for = ort.cuda_version if kind == "onnx" else torch.version.cuda
    assert str(raised.value) == f"model.{kind}: {describe_missing_cuda(built_for)}"


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


WEIGHTS = "weights without their network (a state_dict): export the network with torch.onnx.export"
OBJECTS = "a pickle of objects, which is code and is not loaded: export the network with torch.on"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["module", "state_dict"])
def test_checkpoint_of_torch_is_rejected_by_name_without_unpickling(tmp_path, kind, is_zip, whole):
    path = tmp_path / f"model.{kind}"
    network = TorchNetwork()  # a pickle can run any code: only TorchScript is loaded
    saved = network if whole else {"state_dict": network.state_dict(), "epoch": 3}
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ModelError) as raised:
        open_backbone(path, "cpu", 1)
    assert str(raised.value).startswith(
        f"model.{kind}: expected a model that loads, got {OBJECTS if whole else WEIGHTS}"
    )


def test_pickle_that_runs_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelError, match="got a pickle of objects, which is code"):
        open_backbone(path, "cpu", 1)
    assert not (tmp_path / "ran").exists()


def test_safetensors_are_rejected_by_name(tmp_path):
    path = tmp_path / "model.pt"
    safetensors.torch.save_file({"kernel": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"got weights without their network \(safetensors\)"):
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


def test_each_of_several_outputs_has_its_name(graph_folder):
    folder = graph_folder(
        "auxiliary (float[n,3,h,w] image) => (float[n,3,h,w] logits, float[n,3,h,w] other)"
        "{ logits = Neg(image) other = Abs(image) }"
    )
    network, images = open_backbone(folder / "model.onnx", "cpu", 1), np.ones((1, 3, 2, 2), "f")
    assert {name: value.max() for name, value in network.outputs(images).items()} == {
        "logits": -1, "other": 1,
    }  # fmt: skip
    assert (network(images, "other") == 1).all()
    assert (network(images) == -1).all()


def test_entries_of_a_torch_networks_dict_have_their_names(tmp_path, images):
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchNetwork()

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"aux": images, "out": self.network(images)}

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Wrapped(), (torch.from_numpy(images),)), path)
    network = open_backbone(path, "cpu", 1)
    assert list(network.outputs(images)) == ["aux", "out"]
    assert np.allclose(network(images, "out"), expected_logits(images), atol=1e-6)


def test_entries_of_a_torch_networks_tuple_are_numbered(tmp_path, images):
    class Wrapped(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images, images.argmax(1)

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Wrapped(), (torch.from_numpy(images),)), path)
    outputs = open_backbone(path, "cpu", 1).outputs(images)
    assert {name: value.dtype for name, value in outputs.items()} == {
        "0": np.float32,
        "1": np.int64,
    }


def test_torch_network_of_half_precision_has_single_precision_input_and_output(tmp_path, images):
    network = torch.nn.Conv2d(3, 2, 1).half()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(network, (torch.from_numpy(images).half(),)), path)
    logits = open_backbone(path, "cpu", 1)(images)
    assert logits.dtype == np.float32
    single = network.float()(torch.from_numpy(images)).detach().numpy()
    assert np.allclose(logits, single, atol=5e-3)


def test_network_of_channels_last_gets_them_last(graph_folder):
    folder = graph_folder(
        "last (float[n,h,w,3] image) => (float[n,h,w,3] logits) { logits = Neg(image) }"
    )
    network = open_backbone(folder / "model.onnx", "cpu", 1)
    images = np.random.default_rng(0).random((1, 3, 4, 6), np.float32)
    assert network.input_shape == (None, 3, None, None)
    assert np.array_equal(network(images), -images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("n,3,h,w", (None, 3, None, None)),
        ("2,3,64,w", (2, 3, 64, None)),
        ("1,32,64,3", (1, 3, 32, 64)),
    ],
)
def test_input_shape_is_read_from_the_file(graph_folder, shape, expected):
    folder = graph_folder(
        f"g (float[{shape}] image) => (float[{shape}] logits) {{ logits = Neg(image) }}"
    )
    assert open_backbone(folder / "model.onnx", "cpu", 1).input_shape == expected


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
