"""An inference server of KServe that returns the logits of an ONNX file."""

import sys
from typing import Any

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Logits(Model):  # type: ignore[misc]
    """An ONNX file as a model of KServe."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(name)
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """Return the metadata of the input."""
        name = self._session.get_inputs()[0].name
        return [{"name": name, "datatype": "FP32", "shape": [-1, 3, -1, -1]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        """Return the metadata of the output."""
        name = self._session.get_outputs()[0].name
        return [{"name": name, "datatype": "FP32", "shape": [-1, -1, -1, -1]}]

    def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """Run the network."""
        given = payload.inputs[0]
        values = self._session.run(None, {given.name: given.as_numpy()})[0]
        output = InferOutput(self._session.get_outputs()[0].name, list(values.shape), "FP32")
        output.set_data_from_numpy(values, binary_data=True)
        return InferResponse(
            payload.id, self.name, [output], use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    server = ModelServer(http_port=int(sys.argv[3]), enable_grpc=False, workers=1)
    server.start([Logits(sys.argv[1], sys.argv[2])])
