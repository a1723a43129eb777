"""What is served: pictures of three sizes and networks of three class counts, ready in folders.

- `street`: the bundled network, K=11, 480x360, logits at stride 2;
- `large`: K=19 on 2048x1024, the size of Cityscapes; the bundled network's architecture;
- `large-segformer`: the same with SegFormer-B0, logits at stride 4;
- `many`: K=150 on 512x512, the size of ADE20K; SegFormer-B0.

All but the first have random weights and are exported where they are needed.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image

from app.artifacts import ArtifactStore
from app.fits import Wanted, fit_here
from app.inference.card import read_model_folder
from app.settings import load_settings
from benchmarks.networks import export_pyramid, export_segformer

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "examples/street.jpg"
BUNDLED = "camvid-street"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FIT_PIXELS, FIT_IMAGES = 8000, 16
TRUE_TEMPERATURE = 1.5  # the labels of a fit are drawn at this temperature

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A size of picture, (width, height), and a network."""

    name: str
    num_classes: int
    size: tuple[int, int]
    network: Literal["bundled", "pyramid", "segformer"]

    @property
    def title(self) -> str:
        """The shape in a few words."""
        return f"K={self.num_classes}, {self.size[0]}x{self.size[1]}, {self.network}"

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
    """A shape with all its files: folders as the service wants them, and the picture."""

    shape: Shape
    models: Path
    artifacts: Path
    model_file: Path
    picture: bytes


def make_ready(shape: Shape, folder: Path) -> Ready:
    """Export what is missing, fit a calibrator, and prepare the picture."""
    models, artifacts = folder / "models", folder / "calibrators"
    picture = picture_of(shape.size)
    name = BUNDLED if shape.network == "bundled" else f"{shape.network}-{shape.num_classes}"
    model = models / name
    if not (model / "card.toml").exists():
        model.mkdir(parents=True, exist_ok=True)
        if shape.network == "bundled":
            shutil.copytree(ROOT / "models" / BUNDLED, model, dirs_exist_ok=True)
        else:
            export(shape, picture, model)
    if not (artifacts / name / "active").exists():
        if shape.network == "bundled":
            shutil.copytree(ROOT / "calibration_artifacts" / name, artifacts / name)
        else:
            fit(shape, picture, models, artifacts)
    return Ready(shape, models, artifacts, model / "model.onnx", picture)


def picture_of(size: tuple[int, int]) -> bytes:
    """Resize the example to (width, height), as a JPEG."""
    buffer = io.BytesIO()
    with Image.open(PICTURE) as picture:
        resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        resized.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def network_input(shape: Shape, picture: bytes) -> NDArray[np.float32]:
    """Decode and normalise to float32 [1,3,H,W]."""
    mean, std = (np.array(values, np.float32) for values in shape.normalisation)
    with Image.open(io.BytesIO(picture)) as decoded:
        pixels = (np.asarray(decoded.convert("RGB"), np.float32) / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def export(shape: Shape, picture: bytes, model: Path) -> None:
    """Write a network with random weights, and the card that says how it wants its input."""
    images = torch.from_numpy(network_input(shape, picture))
    maker = export_segformer if shape.network == "segformer" else export_pyramid
    maker(shape.num_classes, images, model / "model.onnx")
    mean, std = (list(values) for values in shape.normalisation)
    width, height = shape.size
    classes = ", ".join(
        f'{{name = "class {index}", color = "#{index * 104729 % (1 << 24):06x}"}}'
        for index in range(shape.num_classes)
    )
    (model / "card.toml").write_text(
        f'name = "{model.name}"\nfile = "model.onnx"\ntitle = "random weights"\n'
        f"[input]\nmean = {mean}\nstd = {std}\nsize = [{height}, {width}]\n"
        f"[output]\nclasses = [{classes}]\n"
    )


def fit(shape: Shape, picture: bytes, models: Path, artifacts: Path) -> None:
    """Fit the bundled model's kind of calibrator on labels drawn from the network's own softmax."""
    folder = read_model_folder(next(path for path in models.iterdir()))
    session = ort.InferenceSession(folder.path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": network_input(shape, picture)})[0][0]
    generator = np.random.default_rng(1)
    table = logits.reshape(shape.num_classes, -1).T
    table = table[generator.choice(len(table), FIT_PIXELS, replace=False)]
    noise = generator.gumbel(size=table.shape)  # the largest of these is a draw from the softmax
    labels = (table / TRUE_TEMPERATURE + noise).argmax(axis=1)
    data = models.parent / "fit.npz"
    index = np.repeat(np.arange(FIT_IMAGES), FIT_PIXELS // FIT_IMAGES)
    np.savez(data, logits=table, labels=labels, image_index=index)
    wanted = Wanted({"logits": data}, bundled_method(), "always", True, 255, 0, "benchmark")
    settings = load_settings(models_dir=models, artifacts_dir=artifacts)
    fit_here(wanted, folder, settings, lambda _stage, _share: None)


def bundled_method() -> str:
    """Name the method of the bundled model's active calibrator."""
    store = ArtifactStore(ROOT / "calibration_artifacts")
    active = store.active_id(BUNDLED)
    return next(m.method for m in store.versions(BUNDLED) if m.id == active)
