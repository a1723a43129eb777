"""What is served: images of three sizes and networks of three class counts, ready in folders.

- `street`: the bundled network, K=11, 480x360, logits at stride 2;
- `large`: K=19 on 2048x1024, the size of Cityscapes; the bundled network's architecture;
- `large-segformer`: the same with SegFormer-B0, logits at stride 4;
- `many`: K=150 on 512x512, the size of ADE20K; SegFormer-B0.

All but the first have random weights and are exported where they are needed.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "camvid-street"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A size of image, (width, height), and a network."""

    name: str
    num_classes: int
    size: tuple[int, int]
    network: Literal["bundled", "pyramid", "segformer"]

    @property
    def title(self) -> str:
        """The shape in a few words."""
        return f"K={self.num_classes}, {self.size[0]}x{self.size[1]}, {self.network}"

    @property
    def model(self) -> str:
        """The model's name."""
        return BUNDLED if self.network == "bundled" else f"{self.network}-{self.num_classes}"

    @property
    def normalisation(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation on the 0..1 scale; a pyramid normalises by itself."""
        return IMAGENET if self.network == "segformer" else AS_IT_IS


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("street", 11, (480, 360), "bundled"),
        Shape("large", 19, (2048, 1024), "pyramid"),
        Shape("large-segformer", 19, (2048, 1024), "segformer"),
        Shape("many", 150, (512, 512), "segformer"),
    )
}


@dataclass(frozen=True)
class Ready:
    """A shape and the folder that holds its files, laid out as the service wants them."""

    shape: Shape
    folder: Path

    @property
    def models(self) -> Path:
        """The folder of models."""
        return self.folder / "models"

    @property
    def artifacts(self) -> Path:
        """The folder of calibrators."""
        return self.folder / "calibrators"

    @property
    def model_file(self) -> Path:
        """The network."""
        return self.models / self.shape.model / "model.onnx"

    @property
    def image_file(self) -> Path:
        """The image that is sent, a JPEG; written last."""
        return self.folder / "image.jpg"


def make_ready(shape: Shape, folder: Path) -> Ready:
    """Export what is missing, fit a calibrator, and make the image.

    It happens in a process of its own, so that what measures stays small.
    """
    files = Ready(shape, folder)
    if not files.image_file.exists():
        command = [sys.executable, "-m", "benchmarks.preparation", shape.name, str(folder)]
        subprocess.run(command, check=True, cwd=ROOT)
    return files
