"""Prepare images, networks and calibrators of the serving benchmarks, in folders.

- `street`: the bundled network, K=11, 480x360, logits at stride 2;
- `large`: K=19 on 2048x1024, the size of Cityscapes; the bundled network's architecture;
- `many`: K=150 on 512x512, the size of ADE20K; SegFormer-B0, logits at stride 4.

The last two have random weights. Their classifier is scaled once on the benchmark's image so that
each class has logits of mean 0 and equal standard deviation: masks then have regions of all
classes, and PNG encoding costs what it costs on real masks.
"""

import importlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from app.cli.fits import Source, fit_locally
from app.inference.model_card import read_model_folder
from app.schemas.fit import FitOptions
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from benchmarks.harness import BUNDLED, EXAMPLE, ROOT, call_in_process
from training.export import fold
from training.networks.pyramid import NetworkShape, PyramidNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FIT_PIXELS, FIT_IMAGES = 8000, 16
TRUE_TEMPERATURE = 1.5  # at which a fit's labels are drawn
LOGIT_STD = 4.0  # of each class over an image
GAIN = 8.0  # scales the weights of the stride-four network
SEED = 1

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A network and an image size (width, height)."""

    name: str
    num_classes: int
    size: tuple[int, int]
    network: Literal["bundled", "pyramid", "segformer"]

    @property
    def title(self) -> str:
        """Return a heading."""
        return f"K={self.num_classes}, {self.size[0]}x{self.size[1]}, {self.network}"

    @property
    def model(self) -> str:
        """Return the model's name."""
        return BUNDLED if self.network == "bundled" else f"{self.network}-{self.num_classes}"

    @property
    def normalisation(self) -> tuple[Triple, Triple]:
        """Return mean and std on the 0..1 scale; a pyramid network normalises its own input."""
        return IMAGENET if self.network == "segformer" else IDENTITY


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("street", 11, (480, 360), "bundled"),
        Shape("large", 19, (2048, 1024), "pyramid"),
        Shape("many", 150, (512, 512), "segformer"),
    )
}


@dataclass(frozen=True)
class Workspace:
    """A shape's folder: models, calibrators and the image that is sent."""

    shape: Shape
    folder: Path

    @property
    def models(self) -> Path:
        """Return the folder of models."""
        return self.folder / "models"

    @property
    def artifacts(self) -> Path:
        """Return the folder of calibrators."""
        return self.folder / "calibrators"

    @property
    def model_file(self) -> Path:
        """Return the network's file."""
        return self.models / self.shape.model / "model.onnx"

    @property
    def image_file(self) -> Path:
        """Return the JPEG's file, which is written last."""
        return self.folder / "image.jpg"


def prepare(shape: Shape, folder: Path) -> Workspace:
    """Write a shape's files unless they exist, in a new process."""
    workspace = Workspace(shape, folder)
    if not workspace.image_file.exists():
        call_in_process(write_files, shape.name, str(folder))
    return workspace


def write_files(shape_name: str, folder: str) -> None:
    """Write network, card, calibrator and image."""
    shape = SHAPES[shape_name]
    workspace = Workspace(shape, Path(folder))
    shutil.rmtree(folder, ignore_errors=True)
    image = example_image(shape.size)
    if shape.network == "bundled":
        for name in (BUNDLED, f"{BUNDLED}-int8"):
            shutil.copytree(ROOT / "models" / name, workspace.models / name)
            shutil.copytree(ROOT / "calibration_artifacts" / name, workspace.artifacts / name)
    else:
        workspace.model_file.parent.mkdir(parents=True)
        images = network_input(shape, image)
        export(shape, torch.from_numpy(images), workspace.model_file)
        mean, std = (list(values) for values in shape.normalisation)
        size = [shape.size[1], shape.size[0]]
        write_card(
            workspace.model_file.parent,
            shape.num_classes,
            f"mean = {mean}\nstd = {std}\nsize = {size}",
        )
        fit(workspace, images)
    workspace.image_file.write_bytes(image)


def example_image(size: tuple[int, int]) -> bytes:
    """Resize the example photograph to (width, height) and encode it as JPEG."""
    buffer = io.BytesIO()
    with Image.open(EXAMPLE) as image:
        resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        resized.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def network_input(shape: Shape, image: bytes) -> NDArray[np.float32]:
    """Decode and normalise to float32 [1,3,H,W]."""
    mean, std = (np.array(values, np.float32) for values in shape.normalisation)
    with Image.open(io.BytesIO(image)) as decoded:
        pixels = (np.asarray(decoded.convert("RGB"), np.float32) / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def write_card(folder: Path, num_classes: int, input_entries: str) -> None:
    """Write a model card with classes of distinct colours."""
    classes = ", ".join(
        f'{{name = "class {index}", color = "#{index * 104729 % (1 << 24):06x}"}}'
        for index in range(num_classes)
    )
    (folder / "card.toml").write_text(
        f'name = "{folder.name}"\nfile = "model.onnx"\ntitle = "random weights"\n'
        f"[input]\n{input_entries}\n[output]\nclasses = [{classes}]\n"
    )


class Segformer(nn.Module):
    """SegFormer-B0 (arXiv 2105.15203, table 6): images [N,3,H,W] to logits [N,K,H/4,W/4]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        transformers: Any = importlib.import_module("transformers")  # of `make bench` only
        config = transformers.SegformerConfig(num_labels=num_classes)  # its defaults are B0's
        self.net = transformers.SegformerForSemanticSegmentation(config)

    @property
    def classifier(self) -> nn.Conv2d:
        """Return the last layer."""
        layer = self.net.decode_head.classifier
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N,K,H/4,W/4]."""
        logits: Tensor = self.net(images).logits
        return logits


def export(shape: Shape, images: Tensor, path: Path) -> None:
    """Write a network with random weights for inputs of the size of `images` [1,3,H,W]."""
    torch.manual_seed(SEED)
    network: Segformer | PyramidNet
    if shape.network == "segformer":
        network = Segformer(shape.num_classes).eval()
    else:
        network = fold(PyramidNet(NetworkShape(num_classes=shape.num_classes)).eval())
    equalise_classes(network, network.classifier, images)
    torch.onnx.export(
        network, (images,), path, input_names=["image"], output_names=["logits"],
        opset_version=18, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


@torch.inference_mode()
def equalise_classes(network: nn.Module, classifier: nn.Conv2d, images: Tensor) -> None:
    """Scale and shift the classifier so that each class has mean 0 and one std over `images`."""
    outputs: list[Tensor] = []
    hook = classifier.register_forward_hook(lambda _module, _inputs, out: outputs.append(out))
    network(images)
    hook.remove()
    gain = LOGIT_STD / outputs[0].std(dim=(0, 2, 3)).clamp(min=1e-6)
    assert classifier.bias is not None
    classifier.weight *= gain[:, None, None, None]
    classifier.bias.copy_((classifier.bias - outputs[0].mean(dim=(0, 2, 3))) * gain)


def fit(workspace: Workspace, images: NDArray[np.float32]) -> None:
    """Fit the bundled model's method on labels drawn from the network's own softmax."""
    folder = read_model_folder(workspace.model_file.parent)
    session = ort.InferenceSession(folder.path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": images})[0][0]
    generator = np.random.default_rng(1)
    pixels = logits.reshape(workspace.shape.num_classes, -1).T
    pixels = pixels[generator.choice(len(pixels), FIT_PIXELS, replace=False)]
    noise = generator.gumbel(size=pixels.shape)  # argmax(z + noise) is a draw from softmax(z)
    labels = (pixels / TRUE_TEMPERATURE + noise).argmax(axis=1)
    data = workspace.folder / "fit.npz"
    index = np.repeat(np.arange(FIT_IMAGES), FIT_PIXELS // FIT_IMAGES)
    np.savez(data, logits=pixels, labels=labels, image_index=index)
    store = ArtifactStore(ROOT / "calibration_artifacts")
    active = store.active_id(BUNDLED)
    method = next(m.method for m in store.versions(BUNDLED) if m.id == active)
    options = FitOptions(
        method=method, activate="always", allow_label_changes=True, note="benchmark"
    )
    settings = load_settings(models_dir=workspace.models, artifacts_dir=workspace.artifacts)
    source = Source({"logits": data}, 255)
    fit_locally(source, options, folder, settings, lambda _stage, _fraction: None)


def write_stride_four(folder: Path, num_classes: int) -> None:
    """Write one convolution of stride 4, [N,3,H,W] to [N,K,H/4,W/4], with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(1).normal(0, GAIN / 48**0.5, (num_classes, 3, 4, 4))
    shapes: dict[str, list[str | int | None]] = {
        "image": ["n", 3, "h", "w"],
        "logits": ["n", num_classes, "y", "x"],
    }
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["logits"], strides=[4, 4])],
        "stride_four", [image], [logits],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    write_card(folder, num_classes, "mean = [0.5, 0.5, 0.5]\nmultiple_of = 4")
