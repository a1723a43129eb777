"""The other servers, each written as its documentation shows, and the pipeline they all run.

Decode with Pillow, normalise with numpy, run the session, interpolate the logits to the image's
size, softmax, maximum, and two PNGs as base64 in JSON. The loops without a server bound what any
server can reach.
"""

import base64
import io
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

ENVIRONMENT = "SEGCAL_BENCH"
FLOORS = ("session-1x2", "session-2x1", "pipeline")
FLOOR_PNG_LEVEL = 1


@dataclass(frozen=True)
class Plan:
    """Configuration of a server, passed in its environment.

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
        """Return the environment variable's value."""
        return json.dumps(self.__dict__)


def read_plan() -> Plan:
    """Read the environment variable."""
    return Plan(**json.loads(os.environ[ENVIRONMENT]))


def open_session(
    model: str, threads: int, *, spinning: bool = True, arena: bool = True
) -> ort.InferenceSession:
    """Load a network for the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def network_input(image: Image.Image, plan: Plan) -> NDArray[np.float32]:
    """Normalise an RGB image to float32 [1,3,H,W]."""
    mean, std = np.array(plan.mean, np.float32), np.array(plan.std, np.float32)
    pixels = (np.asarray(image, np.float32) / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


class Pipeline:
    """Run a segmentation network with decoding, postprocessing and encoding."""

    def __init__(self, plan: Plan) -> None:
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._session = open_session(plan.model, plan.threads)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, upload: bytes) -> dict[str, str]:
        """Segment an encoded image; mask and confidence are PNGs in base64."""
        return self.segment(decoded(upload))

    @torch.inference_mode()
    def segment(self, image: Image.Image) -> dict[str, str]:
        """Segment a decoded image."""
        images = network_input(image, self._plan)
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
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=self._plan.png_level)
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def floor(name: str, plan_json: str, image_file: str, seconds: float) -> float:
    """Measure a loop without a server; return answers per second.

    `session-1x2` and `session-2x1` are ONNX Runtime alone: one session of two threads, two of one.
    `pipeline` decodes, normalises, runs a session of one thread and encodes two PNGs of an answer
    computed beforehand, in two threads.
    """
    plan, upload = Plan(**json.loads(plan_json)), Path(image_file).read_bytes()
    total = plan.workers * plan.threads
    if name == "pipeline":
        steps = [pipeline_step(plan, upload) for _ in range(total)]
    elif name == "session-2x1":
        steps = [session_step(plan, 1, upload) for _ in range(total)]
    else:
        steps = [session_step(plan, total, upload)]
    return steps_per_second(steps, seconds)


def session_step(plan: Plan, threads: int, upload: bytes) -> Callable[[], object]:
    """Return one run of a session."""
    session = open_session(plan.model, threads)
    feed = {session.get_inputs()[0].name: network_input(decoded(upload), plan)}
    return lambda: session.run(None, feed)


def pipeline_step(plan: Plan, upload: bytes) -> Callable[[], object]:
    """Return one step that decodes, runs a session and encodes."""
    session = open_session(plan.model, 1)
    name = session.get_inputs()[0].name
    images = network_input(decoded(upload), plan)
    logits = torch.from_numpy(session.run(None, {name: images})[0])
    fine = F.interpolate(logits, images.shape[2:], mode="bilinear").softmax(dim=1)
    confidence, mask = (values[0].numpy() for values in fine.max(dim=1))
    planes = [mask.astype(np.uint8), np.rint(confidence * 255).astype(np.uint8)]

    def step() -> None:
        session.run(None, {name: network_input(decoded(upload), plan)})
        for plane in planes:
            Image.fromarray(plane).save(io.BytesIO(), "PNG", compress_level=FLOOR_PNG_LEVEL)

    return step


def decoded(upload: bytes) -> Image.Image:
    """Decode an image as RGB."""
    return Image.open(io.BytesIO(upload)).convert("RGB")


def steps_per_second(steps: Sequence[Callable[[], object]], seconds: float) -> float:
    """Repeat every step in its own thread for `seconds`; return steps per second in total."""
    done: list[None] = []
    ends = 0.0

    def repeat(step: Callable[[], object]) -> None:
        while time.perf_counter() < ends:
            step()
            done.append(None)

    for step in steps:
        step()
    threads = [threading.Thread(target=repeat, args=(step,)) for step in steps]
    started = time.perf_counter()
    ends = started + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done) / (time.perf_counter() - started)
