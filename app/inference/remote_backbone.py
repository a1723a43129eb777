"""Networks on an inference server, behind the call of the networks in this process."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.deadline import UNLIMITED, Deadline
from app.errors import ArgumentError, ModelError
from app.inference.backbone import Array, Shape, input_layout, size_error
from app.inference.upstream import RemoteModel, Upstream, fetch_metadata
from app.open_inference import Tensor

DTYPES = {"FP32": np.float32, "FP16": np.float16}


class RemoteBackbone:
    """A network that an inference server runs; see `Network`.

    Its metadata list one input of images, FP32 or FP16, [N,3,H,W] or [N,H,W,3]. `sha256` is the
    identity of the model (see `identity`). Raises ModelError and UpstreamError.
    """

    device = "remote"

    def __init__(self, remote: RemoteModel, sha256: str) -> None:
        metadata = fetch_metadata(remote)
        if len(metadata.inputs) != 1 or metadata.inputs[0].datatype not in DTYPES:
            got = [f"{each.name} {each.datatype}" for each in metadata.inputs]
            raise ModelError(
                f"expected one input of {' or '.join(DTYPES)} in the metadata of the inference "
                f"server, got {got or 'none'}"
            )
        (self._input,) = metadata.inputs
        sides = [side if side > 0 else None for side in self._input.shape]
        self.input_shape: Shape
        self.input_shape, self._channels_last = input_layout(sides)
        self._outputs = [output.name for output in metadata.outputs]
        self._upstream = Upstream(remote, sha256)

    def __call__(
        self, images: Array, output: str | None = None, deadline: Deadline = UNLIMITED
    ) -> Array:
        """Compute one output; raises UpstreamError, and ArgumentError for a rejected input."""
        names = [output] if output else self._outputs[:1]
        values = self._infer(images, names, deadline)
        value = values[names[0]] if names else next(iter(values.values()))
        return np.array(value, np.float32)  # a copy that may be written to

    def outputs(self, images: Array) -> dict[str, NDArray[Any]]:
        """Compute all outputs of numbers."""
        return self._infer(images, self._outputs, UNLIMITED)

    def _infer(
        self, images: Array, outputs: list[str], deadline: Deadline
    ) -> dict[str, NDArray[Any]]:
        inputs = np.moveaxis(images, 1, -1) if self._channels_last else images
        tensor = Tensor(self._input.name, inputs.astype(DTYPES[self._input.datatype], copy=False))
        try:
            return self._upstream.infer(tensor, outputs, deadline)
        except ArgumentError as error:
            raise size_error(images, error) from error
