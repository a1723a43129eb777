"""Who takes part: how each server is started, asked, and understood."""

import base64
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load import Request, ask_once, form_request, raw_request
from benchmarks.servers.pipeline import ENVIRONMENT, Plan
from benchmarks.shapes import BUNDLED, ROOT, Ready

CORES = 2
# Processes, and threads in each. The others run in whichever is faster, found in the same run.
LAYOUTS = ((1, CORES), (CORES, 1))
BENTOML_PYTHON = Path(sys.prefix + "-bentoml") / "bin/python"


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    `command` makes the command line from an interpreter and a port. `path` is asked with a form's
    file, or with the image as the body where `raw` says so. `ours` is this service, with the
    shape's `model` or another one of its folder.
    """

    name: str
    title: str
    command: Callable[[int], list[str]]
    path: str = "/segment"
    raw: bool = False
    ours: bool = False
    png_level: int = -1
    model: str | None = None

    def serves(self, ready: Ready) -> bool:
        """Tell whether what it would serve is there."""
        return self.model is None or (ready.models / self.model).is_dir()

    def request(self, image: bytes) -> Request:
        """Prepare the request that is sent again and again."""
        return (raw_request if self.raw else form_request)(self.path, image)

    def environment(self, ready: Ready, layout: tuple[int, int], port: int) -> dict[str, str]:
        """Tell the server what to serve and how much of the machine to use."""
        if self.ours:
            return {
                "SEGCAL_MODELS_DIR": str(ready.models),
                "SEGCAL_ARTIFACTS_DIR": str(ready.artifacts),
                "SEGCAL_DEFAULT_MODEL": self.model or ready.model_file.parent.name,
                "SEGCAL_THREADS": str(CORES),
            }
        plan = plan_of(ready, layout, port, self.png_level)
        return {
            ENVIRONMENT: plan.to_json(),
            "OMP_NUM_THREADS": str(plan.threads),
            "PYTHONPATH": str(ROOT),
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "LIT_SERVE_DISABLE_TELEMETRY": "1",
        }

    def answers(self, port: int, ready: Ready) -> bool:
        """Ask for an image once."""
        return bool(ask_once(port, self.request(ready.image_file.read_bytes())))


def plan_of(ready: Ready, layout: tuple[int, int], port: int, png_level: int = -1) -> Plan:
    """Write a plan for the others' pipeline."""
    mean, std = ready.shape.normalisation
    return Plan(str(ready.model_file), mean, std, *layout, port, png_level)


def module(name: str) -> Callable[[int], list[str]]:
    """Run one of the scripts; its port is in its plan."""
    return lambda _port: [sys.executable, "-m", f"benchmarks.servers.{name}"]


def service(port: int) -> list[str]:
    """Run this service."""
    return [sys.executable, "-m", "app", "serve", "--port", str(port)]


def bentoml(port: int) -> list[str]:
    """Run BentoML's own command, in its own environment."""
    target = "benchmarks.servers.bentoml_app:Segmentation"
    python = str(BENTOML_PYTHON)
    return [python, "-m", "bentoml", "serve", target, "--port", str(port), "--host", "127.0.0.1"]


PARTS = "/segment?include=mask,confidence"
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("segcal", "this service", service, PARTS, ours=True),
        Contender(
            "segcal-none", "this service, uncalibrated", service,
            f"{PARTS}&calibrator=none", ours=True,
        ),
        Contender(
            "segcal-int8", "this service, int8 backbone", service, PARTS,
            ours=True, model=f"{BUNDLED}-int8",
        ),
        Contender("fastapi", "plain FastAPI", module("plain_fastapi")),
        Contender(
            "fastapi-png1", "plain FastAPI, fast PNGs", module("plain_fastapi"), png_level=1
        ),
        Contender("litserve", "LitServe", module("litserve_app")),
        Contender("bentoml", "BentoML", bentoml),
        Contender("ray", "Ray Serve", module("ray_app")),
        Contender("mosec", "mosec", module("mosec_app"), raw=True),
    )
}  # fmt: skip
REFERENCE = "fastapi"


def mask_of(body: bytes) -> NDArray[np.uint8]:
    """Read the mask [H,W] out of an answer, ours or another's."""
    part = json.loads(body)["mask"]
    data = base64.b64decode(part["data"] if isinstance(part, dict) else part)
    return np.asarray(Image.open(io.BytesIO(data)))
