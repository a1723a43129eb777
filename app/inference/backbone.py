"""Backbones behind one call: float32 images [N,3,H,W] in, float32 logits [N,K,h,w] out."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from app.errors import ArgumentError, ModelError
from app.inference.threads import ActiveRequests

Array = NDArray[np.float32]


class Backbone(Protocol):
    """Any network that segments; threads may share one."""

    device: str

    def __call__(self, images: Array) -> Array:
        """Images float32 [N,3,H,W] to logits float32 [N,K,h,w] on the network's own grid."""


def open_backbone(
    path: Path, device: str, threads: int, active_requests: ActiveRequests | None = None
) -> Backbone:
    """Load a model file by its ending: .onnx, .pt2 (torch.export) or .pt (TorchScript).

    `device` is auto, cpu or cuda; auto takes CUDA only where a device is present. With a
    `active_requests`, one of several callers at once gets its part of the threads. Raises
    ModelError for a file that does not load, and for cuda without a working device.
    """
    loaders: dict[str, Callable[[Path, str, int, ActiveRequests | None], Backbone]] = {
        ".onnx": OnnxBackbone,
        ".pt2": TorchBackbone,
        ".pt": TorchBackbone,
    }
    try:
        return loaders[path.suffix](path, device, threads, active_requests)
    except ModelError:
        raise
    except Exception as error:  # the loaders raise whatever their parsers raise
        raise ModelError(
            f"{path.name}: expected a model that loads, got: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """Give the start of an error's message, or its name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else repr(error)


class OnnxBackbone:
    """A network in ONNX Runtime.

    Several callers of one session of many threads get in each other's way: its threads wait for
    one another spinning, and two callers on two cores are a sixth slower than one (measured by
    `benchmarks.sessions`). In a crowd each caller has a session of fewer threads.
    """

    def __init__(
        self, path: Path, device: str, threads: int, active_requests: ActiveRequests | None
    ) -> None:
        self._session = open_session(path, device, threads)
        # ONNX Runtime falls back to the CPU without an error; whoever asked for CUDA must know.
        has_cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        if device == "cuda" and not has_cuda:
            raise ModelError(
                f"{path.name}: expected a CUDA device, as SEGCAL_DEVICE says, got none"
            )
        self.device = "cuda" if has_cuda else "cpu"
        self._active_requests, self._narrow = active_requests, self._session
        if active_requests is not None and not has_cuda and threads > 1:
            self._narrow = open_session(path, device, threads // 2)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{path.name}: expected one input, got {len(inputs)}")
        self._input = inputs[0].name
        self._output = self._session.get_outputs()[0].name
        self._dtype = np.float16 if inputs[0].type == "tensor(float16)" else np.float32

    def __call__(self, images: Array) -> Array:
        """Run the session on the first output; raises ArgumentError for a size it can't take."""
        feed = {self._input: images.astype(self._dtype, copy=False)}
        busy = self._active_requests is not None and self._active_requests.several
        session = self._narrow if busy else self._session
        try:
            logits = session.run([self._output], feed)[0]
        except InvalidArgument as error:
            raise unsuitable_size(images, error) from error
        return np.asarray(logits, np.float32)


def open_session(path: Path, device: str, threads: int) -> ort.InferenceSession:
    """Load a network, on CUDA where that is wanted and there, or on so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wants_cuda = device == "cuda" or (device == "auto" and nvidia_device_present())
    providers = ["CUDAExecutionProvider"] if wants_cuda else []
    return ort.InferenceSession(path, options, providers=[*providers, "CPUExecutionProvider"])


class TorchBackbone:
    """A network exported from torch, as an exported program or as TorchScript.

    The thread count is the process's own, set once by whoever starts it.
    """

    def __init__(
        self, path: Path, device: str, threads: int, active_requests: ActiveRequests | None
    ) -> None:
        del threads, active_requests
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise ModelError(
                f"{path.name}: expected a CUDA device, as SEGCAL_DEVICE says, got none"
            )
        self.device = "cuda" if cuda and device != "cpu" else "cpu"
        if path.suffix == ".pt2":
            self._module = torch.export.load(path).module()
        else:
            with warnings.catch_warnings():  # torch would rather have .pt2; cards may name .pt
                warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
                self._module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        self._module.to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """Run the module; a dict answer gives its entry `out`, as torchvision's models do.

        Raises ArgumentError for a size that the module was not exported for.
        """
        try:
            answer = self._module(torch.from_numpy(images).to(self.device))
        except AssertionError as error:  # an exported program's guard on its input's shape
            raise unsuitable_size(images, error) from error
        logits = answer["out"] if isinstance(answer, dict) else answer
        return logits.float().cpu().numpy()  # type: ignore[no-any-return]


def unsuitable_size(images: Array, error: Exception) -> ArgumentError:
    """Say that a model refuses an input of this size, in its own words as well."""
    size = "x".join(str(side) for side in images.shape[:1:-1])
    return ArgumentError(
        f"expected an image of a size the model takes, got {size} as its input: {first_line(error)}"
    )


def nvidia_device_present() -> bool:
    """Look for a device: the runtime lists CUDA among its providers on machines without one."""
    return Path("/dev/nvidiactl").exists() or torch.cuda.is_available()
