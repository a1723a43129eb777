"""The pipeline every other server runs: what a user writes around an ONNX segmentation network.

Decode with Pillow, normalise with numpy, run the session, interpolate the logits to the image's
size, softmax, maximum, and two PNGs as base64 in JSON. It imports nothing of this project.
"""

import base64
import io
import json
import os
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

ENVIRONMENT = "SEGCAL_BENCH"


@dataclass(frozen=True)
class Plan:
    """What a server is told through its environment.

    `workers` processes (or replicas) of `threads` threads each; `mean` and `std` on the 0..1
    scale; `png_level` is zlib's, -1 for Pillow's own default.
    """

    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    workers: int
    threads: int
    port: int
    png_level: int = -1

    def to_json(self) -> str:
        """Pack for the environment variable."""
        return json.dumps(self.__dict__)


def read_plan() -> Plan:
    """Read the environment variable."""
    return Plan(**json.loads(os.environ[ENVIRONMENT]))


class Pipeline:
    """One session with everything around it."""

    def __init__(self, plan: Plan) -> None:
        torch.set_num_threads(plan.threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = plan.threads
        self._session = ort.InferenceSession(
            plan.model, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._mean = np.array(plan.mean, np.float32)
        self._std = np.array(plan.std, np.float32)
        self._png_level = plan.png_level

    def __call__(self, upload: bytes) -> dict[str, str]:
        """Segment an encoded image; mask and confidence are PNGs in base64."""
        image = Image.open(io.BytesIO(upload)).convert("RGB")
        return self.segment(image)

    @torch.inference_mode()
    def segment(self, image: Image.Image) -> dict[str, str]:
        """Segment a decoded image."""
        pixels = (np.asarray(image, np.float32) / 255 - self._mean) / self._std
        images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])  # [1,3,H,W]
        logits = torch.from_numpy(self._session.run(None, {self._input: images})[0])
        size = (image.height, image.width)
        fine = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        confidence, mask = fine.softmax(dim=1).max(dim=1)
        return {
            "mask": self._png(mask[0].to(torch.uint8).numpy()),
            "confidence": self._png((confidence[0] * 255).round().to(torch.uint8).numpy()),
        }

    def _png(self, pixels: NDArray[np.uint8]) -> str:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=self._png_level)
        return base64.b64encode(buffer.getvalue()).decode("ascii")
