"""Dependencies by platform; `python -m tests.platforms` asks the package index for their wheels."""

import re
from pathlib import Path

import pytest

from tests.platforms import PLATFORMS, Platform, packages

ROOT = Path(__file__).parents[1]
WITH_CUDA = {"Linux x86-64", "Windows x86-64"}


@pytest.mark.parametrize("name", PLATFORMS)
def test_each_platform_has_one_onnx_runtime(name):
    runtimes = {found for found in packages(PLATFORMS[name]) if found.startswith("onnxruntime")}
    assert runtimes == {"onnxruntime-gpu" if name in WITH_CUDA else "onnxruntime"}


def test_windows_on_arm_takes_the_runtime_without_cuda():
    windows = Platform(("win_arm64",), "win32", "Windows", "ARM64")
    assert "onnxruntime" in packages(windows)


def test_both_runtimes_have_the_same_version():
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    versions = re.findall(r"^onnxruntime(?:-gpu)?==(.+)$", pins, flags=re.MULTILINE)
    assert len(versions) == 2
    assert len(set(versions)) == 1
