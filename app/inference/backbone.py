"""Segmentation networks in ONNX Runtime or torch, behind one call: images in, logits out."""

import warnings
from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor

from app.deadline import UNLIMITED, Deadline
from app.errors import ArgumentError, ModelError
from app.inference.checkpoints import describe_checkpoint
from app.inference.cuda import describe_missing_cuda, nvidia_device_present
from app.inference.threads import ActiveRequests

Array = NDArray[np.float32]
Shape = tuple[int | None, int | None, int | None, int | None]
DYNAMIC: Shape = (None, None, None, None)


class Backbone(Protocol):
    """A segmentation network; safe for threads."""

    device: str

    def __call__(self, images: Array, deadline: Deadline = UNLIMITED) -> Array:
        """Compute logits float32 [N,K,h,w], on the network's own grid, of float32 [N,3,H,W].

        Raises ArgumentError for a height and width that the network does not take, and
        UnavailableError once the deadline has expired, where the runtime can be stopped.
        """


class Network(Protocol):
    """A loaded model file, whose outputs have names; safe for threads.

    `input_shape` has the batch size, channels, height and width that the file was exported for,
    None for those that may vary or are not known.
    """

    device: str
    input_shape: Shape

    def __call__(
        self, images: Array, output: str | None = None, deadline: Deadline = UNLIMITED
    ) -> Array:
        """Compute one output, by default the first, as float32, of images float32 [N,3,H,W].

        Raises ArgumentError for a height and width that the network does not take, and
        UnavailableError once the deadline has expired, where the runtime can be stopped.
        """

    def outputs(self, images: Array) -> dict[str, NDArray[Any]]:
        """Compute all outputs by name, in the order of the file."""


def open_backbone(
    path: Path, device: str, threads: int, active_requests: ActiveRequests | None = None
) -> Network:
    """Load a model file by its ending: .onnx, .pt2 (torch.export) or .pt (TorchScript).

    `device` is auto, cpu or cuda; auto takes CUDA only where a device is present. With
    `active_requests`, several concurrent callers share the threads. Raises
    ModelError for a file that does not load, and for cuda without a working device.
    """
    loaders: dict[str, Callable[[Path, str, int, ActiveRequests | None], Network]] = {
        ".onnx": OnnxBackbone,
        ".pt2": TorchBackbone,
        ".pt": TorchBackbone,
    }
    try:
        return loaders[path.suffix](path, device, threads, active_requests)
    except ModelError:
        raise
    except Exception as error:  # the loaders raise whatever their parsers raise
        checkpoint = describe_checkpoint(path)
        got = f"got: {first_line(error)}" if checkpoint is None else f"got {checkpoint}"
        raise ModelError(f"{path.name}: expected a model that loads, {got}") from error


class OnnxBackbone:
    """A network in ONNX Runtime.

    The threads of a session wait for one another by spinning, so that two callers of one session
    on two cores are a sixth slower than one (`benchmarks.serving sessions`). Concurrent callers
    therefore use other sessions of fewer threads: as many cores as requests, one thread each. Runs
    of one session share its weights.
    """

    def __init__(
        self, path: Path, device: str, threads: int, active_requests: ActiveRequests | None
    ) -> None:
        self._session = open_session(path, device, threads)
        # ONNX Runtime falls back to the CPU without an error.
        has_cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        if device == "cuda" and not has_cuda:
            raise ModelError(f"{path.name}: {describe_missing_cuda(ort.cuda_version)}")
        self.device = "cuda" if has_cuda else "cpu"
        self._active_requests, self._threads = active_requests, threads
        self._sessions = {threads: self._session}
        if active_requests is not None and not has_cuda:
            for fewer in {isqrt(threads), 1} - {threads}:
                self._sessions[fewer] = open_session(path, device, fewer)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{path.name}: expected one input, got {len(inputs)}")
        self._input = inputs[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._dtype = np.float16 if inputs[0].type == "tensor(float16)" else np.float32
        sides = [side if isinstance(side, int) else None for side in inputs[0].shape]
        self.input_shape: Shape
        self.input_shape, self._channels_last = input_layout(sides)

    def __call__(
        self, images: Array, output: str | None = None, deadline: Deadline = UNLIMITED
    ) -> Array:
        """Compute one output; raises ArgumentError for a size that the session does not take."""
        values = self._run(images, [output or self._outputs[0]], deadline)
        return np.asarray(values[0], np.float32)

    def outputs(self, images: Array) -> dict[str, NDArray[Any]]:
        """Compute all outputs that are arrays."""
        values = zip(self._outputs, self._run(images, self._outputs, UNLIMITED), strict=True)
        return {name: value for name, value in values if isinstance(value, np.ndarray)}

    def _run(self, images: Array, outputs: list[str], deadline: Deadline) -> list[Any]:
        inputs = np.moveaxis(images, 1, -1) if self._channels_last else images
        feed = {self._input: np.ascontiguousarray(inputs, self._dtype)}
        session = self._session_for_caller()
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True  # the run ends after the node that it is at

        try:
            with deadline.stopping(stop):
                return session.run(outputs, feed, options)  # type: ignore[no-any-return]
        except InvalidArgument as error:
            raise size_error(images, error) from error

    def _session_for_caller(self) -> ort.InferenceSession:
        """Return the session of the most threads that every active request could have."""
        if self._active_requests is None:
            return self._session
        share = self._active_requests.share(self._threads)
        fitting = [threads for threads in self._sessions if threads <= share]
        return self._sessions[max(fitting)] if fitting else self._session


def open_session(path: Path, device: str, threads: int) -> ort.InferenceSession:
    """Load an ONNX file on CUDA if asked for and present, else on `threads` CPU threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wants_cuda = device == "cuda" or (device == "auto" and nvidia_device_present())
    if wants_cuda:
        ort.preload_dlls()  # of pip's packages, which the system's loader does not find
    providers = ["CUDAExecutionProvider"] if wants_cuda else []
    return ort.InferenceSession(path, options, providers=[*providers, "CPUExecutionProvider"])


def input_layout(sides: Sequence[int | None]) -> tuple[Shape, bool]:
    """Return the shape [N,3,H,W] of an input, and whether the file has its channels last."""
    if len(sides) != 4:
        return DYNAMIC, False
    if sides[3] == 3 and sides[1] != 3:
        return (sides[0], sides[3], sides[1], sides[2]), True
    return (sides[0], sides[1], sides[2], sides[3]), False


class TorchBackbone:
    """A network exported from torch, as an exported program or as TorchScript.

    torch's thread count is one setting of the whole process and is not changed here.
    """

    def __init__(
        self, path: Path, device: str, threads: int, active_requests: ActiveRequests | None
    ) -> None:
        del threads, active_requests
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise ModelError(f"{path.name}: {describe_missing_cuda(torch.version.cuda)}")
        self.device = "cuda" if cuda and device != "cpu" else "cpu"
        self.input_shape = DYNAMIC
        if path.suffix == ".pt2":
            program = torch.export.load(path)
            self.input_shape = exported_shape(program)
            self._module = program.module()
        else:
            with warnings.catch_warnings():  # TorchScript is deprecated, but cards may name .pt
                warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
                self._module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        self._module.to(self.device)
        floats = (value.dtype for value in self._module.parameters() if value.is_floating_point())
        self._dtype = next(floats, torch.float32)

    def __call__(
        self, images: Array, output: str | None = None, deadline: Deadline = UNLIMITED
    ) -> Array:
        """Compute one output; raises ArgumentError for a size the module was not exported for.

        A module can't be stopped, so the deadline acts before it runs.
        """
        deadline.check()
        outputs = self._run(images)
        value = next(iter(outputs.values())) if output is None else outputs[output]
        return value.float().cpu().numpy()

    def outputs(self, images: Array) -> dict[str, NDArray[Any]]:
        """Compute all outputs that are tensors."""
        return {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in self._run(images).items()
        }

    @torch.inference_mode()
    def _run(self, images: Array) -> dict[str, Tensor]:
        """Run the module; entries of a tuple are named by their number, an only tensor `output`."""
        try:
            output = self._module(torch.from_numpy(images).to(self.device, self._dtype))
        except AssertionError as error:  # an exported program's guard on its input's shape
            raise size_error(images, error) from error
        if isinstance(output, Tensor):
            return {"output": output}
        named = output if isinstance(output, dict) else dict(enumerate(output))
        return {str(name): value for name, value in named.items() if isinstance(value, Tensor)}


def exported_shape(program: torch.export.ExportedProgram) -> Shape:
    """Return the shape of a program's first input, with None for dynamic sizes."""
    name = program.graph_signature.user_inputs[0]
    (node,) = (node for node in program.graph.nodes if node.name == name)
    shape = [side if isinstance(side, int) else None for side in node.meta["val"].shape]
    return tuple(shape) if len(shape) == 4 else DYNAMIC  # type: ignore[return-value]


def size_error(images: Array, error: Exception) -> ArgumentError:
    """Return the error for an input size that a model does not take, given the model's own."""
    size = "x".join(str(side) for side in images.shape[:1:-1])
    return ArgumentError(
        f"expected an image of a size the model takes, got {size} as its input: {first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """Return an error's first line, at most 300 characters, or its repr if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else repr(error)
