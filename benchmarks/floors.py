"""What no server can beat: loops in one process, without a socket.

`python -m benchmarks.floors NAME SECONDS IMAGE` prints the answers a second; the rest of the plan
comes in the environment, as for a server.

- `session-1x2`, `session-2x1`: ONNX Runtime alone, one session of two threads or two of one;
- `pipeline`: two threads that each decode, normalise, run a session of one thread, and encode two
  PNGs of an answer that was made beforehand. Whatever turns logits into that answer comes on top.
"""

import io
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from benchmarks.servers.pipeline import Plan, read_plan

FLOORS = ("session-1x2", "session-2x1", "pipeline")
PNG_LEVEL = 1


def open_session(plan: Plan, threads: int) -> ort.InferenceSession:
    """Load the network."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(plan.model, options, providers=["CPUExecutionProvider"])


def network_input(plan: Plan, image: bytes) -> NDArray[np.float32]:
    """Decode and normalise to float32 [1,3,H,W]."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float32) / 255
    pixels = (pixels - np.array(plan.mean, np.float32)) / np.array(plan.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def session_loop(plan: Plan, threads: int, image: bytes) -> Callable[[], object]:
    """Make one step of a bare loop."""
    session = open_session(plan, threads)
    feed = {session.get_inputs()[0].name: network_input(plan, image)}
    return lambda: session.run(None, feed)


def pipeline_loop(plan: Plan, image: bytes) -> Callable[[], object]:
    """Make one step that decodes, runs and encodes."""
    session = open_session(plan, 1)
    name = session.get_inputs()[0].name
    images = network_input(plan, image)
    logits = torch.from_numpy(session.run(None, {name: images})[0])
    fine = F.interpolate(logits, images.shape[2:], mode="bilinear").softmax(dim=1)
    confidence, mask = (values[0].numpy() for values in fine.max(dim=1))
    planes = [mask.astype(np.uint8), np.rint(confidence * 255).astype(np.uint8)]

    def step() -> None:
        session.run(None, {name: network_input(plan, image)})
        for plane in planes:
            Image.fromarray(plane).save(io.BytesIO(), "PNG", compress_level=PNG_LEVEL)

    return step


def rate(steps: list[Callable[[], object]], seconds: float) -> float:
    """Run every step in a thread of its own, again and again; steps a second, all together."""
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


def main() -> None:
    """Measure one floor."""
    name, seconds, file = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    plan, image = read_plan(), file.read_bytes()
    total = plan.workers * plan.threads
    if name == "pipeline":
        steps = [pipeline_loop(plan, image) for _ in range(total)]
    elif name == "session-2x1":
        steps = [session_loop(plan, 1, image) for _ in range(total)]
    else:
        steps = [session_loop(plan, total, image)]
    print(rate(steps, seconds))


if __name__ == "__main__":
    main()
