"""300 classes, whose ids need 16 bits, in every output, in fits and in evaluations."""

import base64
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from pycocotools import mask as coco

from tests.cli.test_main import Run, run
from tests.conftest import MakeClient
from tests.factories.models import weights, write_onnx_model
from tests.factories.service import RED, THIRDS_MASK, decoded, post, solid, thirds

__all__ = ["run"]  # the fixture

# Red, green and blue are the classes 299, 298 and 297.
MASK = 299 - THIRDS_MASK.astype(np.uint16)


@pytest.fixture
def many(models_dir: Path) -> Path:
    """Write the model `many`: that of 300 classes in reverse order."""
    folder = write_onnx_model(models_dir, "many", 300)
    model = onnx.load(folder / "model.onnx")
    reversed_weights = np.ascontiguousarray(weights(300)[::-1, :, None, None])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(reversed_weights, "weights"))
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools, in its decoder
def test_every_output_of_a_segmentation(many, make_client: MakeClient):
    client = make_client()
    body = post(client, thirds(), model="many", include="mask,rle").json()
    assert [entry["id"] for entry in body["classes"]] == [297, 298, 299]
    mask = decoded(base64.b64decode(body["mask"]["data"]))
    assert (np.asarray(mask) == MASK).all()
    assert [entry["class_id"] for entry in body["rle"]] == [297, 298, 299]
    run_lengths = body["rle"][2] | {"counts": body["rle"][2]["counts"].encode()}
    assert (coco.decode(run_lengths) == (MASK == 299)).all()

    image = decoded(post(client, thirds(), {"Accept": "image/png"}, model="many").content)
    assert image.mode == "I;16"
    assert (np.asarray(image) == MASK).all()
    data = np.load(
        io.BytesIO(post(client, thirds(), {"Accept": "application/x-npz"}, model="many").content)
    )
    assert data["mask"].dtype == np.uint16
    assert (data["mask"] == MASK).all()
    overlay = post(client, thirds(), {"Accept": "image/png"}, model="many", output="overlay")
    assert decoded(overlay.content).size == (12, 8)


def test_abstained_pixels_have_the_highest_value(many, make_client: MakeClient):
    client = make_client()
    response = post(client, thirds(), {"Accept": "image/png"}, model="many", min_confidence=1)
    assert (np.asarray(decoded(response.content)) == 65535).all()


def test_fit_and_evaluation(many, run: Run, tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        cells = rng.integers(0, 3, (8, 12))
        pixels = np.array([RED, (0, 255, 0), (0, 0, 255)], np.uint8)[cells]
        truth = (299 - cells).astype(np.uint16)
        truth[0], truth[1] = 65535, 255  # void, and a class that 8 bits would make void
        Image.fromarray(pixels).save(images / f"{index}.png")
        Image.fromarray(truth).save(labels / f"{index}.png")
    where = ("--model", "many", "--images", images, "--labels", labels)
    fit = run("calibrate", *where, "--method", "temperature", "--activate", "always")
    assert fit.code == 0, fit.err
    evaluated = run("evaluate", *where)
    assert evaluated.code == 0, evaluated.err
    assert "Image-wise ECE" in evaluated.out


def test_pseudo_labels(many, run: Run, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    Image.fromarray(solid(RED)).save(images / "red.png")
    for threshold, value in ((0, 299), (1, 65535)):
        options = ("--model", "many", "--min-confidence", threshold, "--out", out)
        assert run("pseudo-label", images, *options).code == 0
        written = Image.open(out / "red.png")
        assert written.mode == "I;16"
        assert (np.asarray(written) == value).all()
