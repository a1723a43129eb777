"""The reasons for which CUDA can't be used, at the start and when an image is built."""

import onnxruntime as ort
import pytest
import torch

from app.inference import backbone, cuda
from tests.factories.models import write_onnx_model


def test_libraries_of_pip_are_loaded_before_a_session_on_cuda(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: calls.append("preload"))
    path = write_onnx_model(tmp_path, "tiny") / "model.onnx"
    backbone.open_session(path, "cpu", 1)
    assert calls == []
    backbone.open_session(path, "cuda", 1)
    assert calls == ["preload"]


@pytest.mark.parametrize(
    ("built_for", "device", "reason"),
    [
        (None, True, "expected a runtime with CUDA, as SEGCAL_DEVICE says, got a build for CPUs"),
        ("", True, "expected a runtime with CUDA, as SEGCAL_DEVICE says, got a build for CPUs"),
        ("13.0", False, "expected a CUDA device, as SEGCAL_DEVICE says, got none"),
        ("13.0", True, "expected the driver and libraries of CUDA 13.0, as SEGCAL_DEVICE says, "),
    ],
)
def test_reason_names_the_build_the_device_or_the_libraries(monkeypatch, built_for, device, reason):
    monkeypatch.setattr(cuda, "nvidia_device_present", lambda: device)
    assert cuda.describe_missing_cuda(built_for).startswith(reason)


def test_gpu_packages_need_x86_64_and_torch_with_cuda():
    assert cuda.describe_build("x86_64", "13.0") is None
    assert "got aarch64" in (cuda.describe_build("aarch64", "13.0") or "")
    assert "expected a CUDA build of torch" in (cuda.describe_build("x86_64", None) or "")


@pytest.mark.skipif(torch.version.cuda is not None, reason="expected torch for CPUs")
def test_image_build_with_gpu_packages_and_torch_for_cpus_ends_with_the_reason():
    with pytest.raises(SystemExit, match=r"^error: expected a"):
        cuda.main()
