"""LitServe: a LitAPI with its four steps, given a form's file."""

import io

import litserve
from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile

from benchmarks.serving.servers import Pipeline, read_plan


class Segmentation(litserve.LitAPI):
    """Decode, predict, encode."""

    def setup(self, device: str) -> None:
        """Load the network, once in every worker."""
        del device
        self.pipeline = Pipeline(read_plan())

    def decode_request(self, request: Request) -> Image.Image:
        """Read the image from the form, which LitServe parses for the type hint Request."""
        upload = request["image"]
        assert isinstance(upload, UploadFile)
        return Image.open(io.BytesIO(upload.file.read())).convert("RGB")

    def predict(self, image: Image.Image) -> dict[str, str]:
        """Run the network and the postprocessing."""
        return self.pipeline.segment(image)

    def encode_response(self, output: dict[str, str]) -> dict[str, str]:
        """Return the answer as JSON."""
        return output


if __name__ == "__main__":
    plan = read_plan()
    server = litserve.LitServer(
        Segmentation(api_path="/segment"),
        accelerator="cpu",
        workers_per_device=plan.workers,
        timeout=120,
    )
    server.run(host="127.0.0.1", port=plan.port, generate_client_file=False, log_level="warning")
