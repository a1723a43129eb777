"""An inference server that returns the logits of an ONNX file, as a process of its own.

It serves the file as the model `NAME`, version `1`, over the Open Inference Protocol.
"""

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import onnxruntime as ort
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.open_inference import (
    HEADER_LENGTH,
    InferenceRequest,
    Tensor,
    decode_body,
    encode_body,
    read_tensors,
)

ROOT = Path(__file__).parents[2]
START_S = 60


def build_app(options: argparse.Namespace) -> Starlette:
    """Build the server of one ONNX file."""
    session = ort.InferenceSession(options.path, providers=["CPUExecutionProvider"])
    name = options.name
    image, logits = session.get_inputs()[0].name, session.get_outputs()[0].name

    async def metadata(_request: Request) -> Response:
        return JSONResponse(
            {
                "name": name,
                "versions": ["1"],
                "platform": options.platform,
                "inputs": [{"name": image, "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
                "outputs": [{"name": logits, "datatype": "FP32", "shape": [-1, -1, -1, -1]}],
            }
        )

    async def infer(request: Request) -> Response:
        body = await request.body()
        message, data = decode_body(body, request.headers[HEADER_LENGTH], InferenceRequest)
        (given,) = read_tensors(message.inputs, data)
        time.sleep(options.delay)
        if given.shape[2] > options.max_height:
            return JSONResponse({"error": f"a height of at most {options.max_height}"}, 400)
        values = session.run(None, {image: given.values})[0]
        header = {"model_name": name, "model_version": "1"}
        encoded, length = encode_body(header, "outputs", [(Tensor(logits, values), True)])
        return Response(encoded, headers={HEADER_LENGTH: str(length)})

    return Starlette(
        routes=[
            Route(f"/v2/models/{name}", metadata),
            Route(f"/v2/models/{name}/infer", infer, methods=["POST"]),
        ]
    )


@dataclass
class InferenceServer:
    """A server's process; `kill` ends it with SIGKILL, `start` starts it on the same port."""

    command: list[str]
    url: str
    process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start the process and wait until it answers."""
        self.process = subprocess.Popen([*self.command, *options], cwd=ROOT)
        deadline = time.monotonic() + START_S
        while not self.responds():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def responds(self) -> bool:
        """Return whether the server responds, with any status."""
        try:
            httpx2.get(f"{self.url}/v2")
        except httpx2.TransportError:
            return False
        return True

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def open_inference_server(path: Path, name: str, *options: str) -> Iterator[InferenceServer]:
    """Serve an ONNX file for the block."""
    port = free_port()
    command = [sys.executable, "-m", __spec__.name, str(path), name, str(port)]
    server = InferenceServer(command, f"http://127.0.0.1:{port}")
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("--platform", default="onnx_onnxv1")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--max-height", type=int, default=1 << 14)
    options = parser.parse_args()
    uvicorn.run(build_app(options), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
