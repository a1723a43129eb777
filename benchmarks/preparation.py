"""Makes the files of a benchmark's shape: network, card, calibrator and image.

`python -m benchmarks.preparation SHAPE FOLDER`; the image is written last, and says it is done.
"""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image

from app.cli.calibrate import Wanted, fit_here
from app.inference.model_card import read_model_folder
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from benchmarks.networks import export_pyramid, export_segformer
from benchmarks.shapes import BUNDLED, ROOT, SHAPES, Ready, Shape

IMAGE = ROOT / "examples/street.jpg"
FIT_PIXELS, FIT_IMAGES = 8000, 16
TRUE_TEMPERATURE = 1.5  # the labels of a fit are drawn at this temperature


def prepare(files: Ready) -> None:
    """Make everything anew."""
    shape = files.shape
    shutil.rmtree(files.folder, ignore_errors=True)
    image = image_of(shape.size)
    if shape.network == "bundled":
        for name in (BUNDLED, f"{BUNDLED}-int8"):
            shutil.copytree(ROOT / "models" / name, files.models / name)
            shutil.copytree(ROOT / "calibration_artifacts" / name, files.artifacts / name)
    else:
        files.model_file.parent.mkdir(parents=True)
        export(shape, image, files.model_file.parent)
        fit(files, image)
    files.image_file.write_bytes(image)


def image_of(size: tuple[int, int]) -> bytes:
    """Resize the example to (width, height), as a JPEG."""
    buffer = io.BytesIO()
    with Image.open(IMAGE) as image:
        resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        resized.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def network_input(shape: Shape, image: bytes) -> NDArray[np.float32]:
    """Decode and normalise to float32 [1,3,H,W]."""
    mean, std = (np.array(values, np.float32) for values in shape.normalisation)
    with Image.open(io.BytesIO(image)) as decoded:
        pixels = (np.asarray(decoded.convert("RGB"), np.float32) / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def export(shape: Shape, image: bytes, model: Path) -> None:
    """Write a network with random weights, and the card that says how it wants its input."""
    images = torch.from_numpy(network_input(shape, image))
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


def fit(files: Ready, image: bytes) -> None:
    """Fit the bundled model's kind of calibrator on labels drawn from the network's own softmax."""
    shape = files.shape
    folder = read_model_folder(files.model_file.parent)
    session = ort.InferenceSession(folder.path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": network_input(shape, image)})[0][0]
    generator = np.random.default_rng(1)
    table = logits.reshape(shape.num_classes, -1).T
    table = table[generator.choice(len(table), FIT_PIXELS, replace=False)]
    noise = generator.gumbel(size=table.shape)  # the largest of these is a draw from the softmax
    labels = (table / TRUE_TEMPERATURE + noise).argmax(axis=1)
    data = files.folder / "fit.npz"
    index = np.repeat(np.arange(FIT_IMAGES), FIT_PIXELS // FIT_IMAGES)
    np.savez(data, logits=table, labels=labels, image_index=index)
    wanted = Wanted({"logits": data}, bundled_method(), "always", True, False, 255, 0, "benchmark")
    settings = load_settings(models_dir=files.models, artifacts_dir=files.artifacts)
    fit_here(wanted, folder, settings, lambda _stage, _share: None)


def bundled_method() -> str:
    """Name the method of the bundled model's active calibrator."""
    store = ArtifactStore(ROOT / "calibration_artifacts")
    active = store.active_id(BUNDLED)
    return next(m.method for m in store.versions(BUNDLED) if m.id == active)


def main() -> None:
    """Prepare one shape."""
    prepare(Ready(SHAPES[sys.argv[1]], Path(sys.argv[2])))


if __name__ == "__main__":
    main()
