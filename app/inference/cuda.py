"""Find out why CUDA can't be used, at the start and when an image is built."""

import platform
import sys
from pathlib import Path

import torch


def nvidia_device_present() -> bool:
    """Return whether there is a device: ONNX Runtime lists CUDA on machines without one too."""
    return Path("/dev/nvidiactl").exists() or torch.cuda.is_available()


def describe_missing_cuda(built_for: str | None) -> str:
    """Return why a runtime, built for this version of CUDA or for none, does not run on CUDA."""
    if not built_for:
        return "expected a runtime with CUDA, as SEGCAL_DEVICE says, got a build for CPUs"
    if not nvidia_device_present():
        return "expected a CUDA device, as SEGCAL_DEVICE says, got none"
    return (
        f"expected the driver and libraries of CUDA {built_for}, as SEGCAL_DEVICE says, got none "
        "that load: update the driver, or install the packages of `pip install segcal[gpu]`"
    )


def describe_build(machine: str, cuda_of_torch: str | None) -> str | None:
    """Return why the extra `gpu` can't be installed beside this torch, or None where it can."""
    if machine not in {"x86_64", "AMD64"}:
        return (
            f"expected an x86-64 machine for the extra packages gpu, got {machine}, for which "
            "ONNX Runtime has no wheel with CUDA"
        )
    if cuda_of_torch is None:
        return (
            "expected a CUDA build of torch for the extra packages gpu, got one for CPUs, on which "
            "torch models would not use the GPU: leave TORCH_INDEX empty"
        )
    return None


def main() -> None:
    """Exit with 1 and the reason where the extra `gpu` can't be installed; for image builds."""
    reason = describe_build(platform.machine(), torch.version.cuda)
    if reason is not None:
        sys.exit(f"error: {reason}")
