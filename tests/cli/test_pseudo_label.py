"""`segcal pseudo-label`: label maps whose uncertain pixels are void, and acceptance by class."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.calibration.predictions import Prediction
from app.datasets.pseudo_labels import (
    AcceptanceRule,
    accept,
    median_confidence,
    near_boundary,
    write_pseudo_labels,
)
from app.errors import ArgumentError
from app.inference.model_card import OutputPolicy
from app.schemas.calibrator import CertifiedThreshold
from tests.cli.test_main import Run, run
from tests.factories.models import write_card
from tests.factories.service import THIRDS_MASK, publish_temperature, solid, thirds

__all__ = ["run"]  # the fixture

CLASSES = tuple({"name": name, "color": "#102030"} for name in ("sky", "road", "tree"))
PALE = (255, 200, 200)  # logits (4, 3.1, 3.1): confidence 0.55


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write an image of saturated thirds, and one of pale red."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(thirds()).save(folder / "thirds.png")
    Image.fromarray(solid(PALE)).save(folder / "pale.png")
    return folder


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "acceptance.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_uncertain_pixels_have_the_ignore_value(run: Run, images, tmp_path):
    out = tmp_path / "out"
    result = run("pseudo-label", images, "--min-confidence", 0.9, "--out", out)
    assert result.code == 0, result.err
    # Interpolation has blurred the columns next to a boundary.
    kept = [0, 1, 5, 6, 10, 11]
    assert (read_mask(out / "thirds.png")[:, kept] == THIRDS_MASK[:, kept]).all()
    assert (read_mask(out / "pale.png") == 255).all()
    red, green, _ = read_table(out)
    assert (red["name"], int(red["predicted"])) == ("class-0", 8 * 4 + 8 * 12)
    assert int(green["accepted"]) == (read_mask(out / "thirds.png") == 1).sum()
    assert "class-0" in result.out
    assert "2 of 2 images" in result.err


def test_masks_are_read_as_label_maps(run: Run, images, tmp_path):
    out = tmp_path / "out"
    assert run("pseudo-label", images, "--min-confidence", 0.5, "--out", out).code == 0
    result = run("evaluate", "--model", "tiny", "--images", images, "--labels", out)
    assert result.code == 0, result.err


def test_max_error_is_refused_without_certificate(run: Run, images, tmp_path):
    result = run("pseudo-label", images, "--max-error", 0.05, "--out", tmp_path / "out")
    assert result.code == 2
    assert "expected a calibrator with a threshold certified for --max-error 0.05" in result.err
    assert "--min-confidence sets one without a certificate" in result.err
    assert not (tmp_path / "out").exists()


def test_max_error_uses_the_certified_threshold(
    run: Run, images, tmp_path, models_dir, artifacts_dir
):
    level = CertifiedThreshold(0.05, 0.7, 0.1, 0.8, 0.01, 40)
    publish_temperature(artifacts_dir, models_dir / "tiny", 2, thresholds=(level,))
    out = tmp_path / "out"
    assert run("pseudo-label", images, "--max-error", 0.06, "--out", out).code == 0
    assert {row["threshold"] for row in read_table(out)} == {str(float(np.float32(0.7)))}
    assert (read_mask(out / "thirds.png")[:, [0, 11]] == [0, 2]).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "expected one of --max-error and --min-confidence"),
        (("--max-error", 0.1, "--min-confidence", 0.9), "expected one of --max-error and"),
        (("--max-error", 0.1, "--class-wise"), "expected --min-confidence with --class-wise"),
    ],
)
def test_options_that_exclude_each_other(run: Run, images, tmp_path, options, reason):
    result = run("pseudo-label", images, "--out", tmp_path / "out", *options)
    assert result.code == 2
    assert reason in result.err


def test_label_maps_that_count_from_one(run: Run, images, tmp_path, models_dir):
    write_card(models_dir / "tiny", reduce_zero_label=True, ignore_index=0)
    out = tmp_path / "out"
    assert run("pseudo-label", images, "--min-confidence", 0.9, "--out", out).code == 0
    assert read_mask(out / "thirds.png")[0, [0, 5, 11]].tolist() == [1, 2, 3]
    assert (read_mask(out / "pale.png") == 0).all()


def test_damaged_image_does_not_stop_the_others(run: Run, images, tmp_path):
    (images / "broken.png").write_bytes(b"no image")
    result = run("pseudo-label", images, "--min-confidence", 0, "--out", tmp_path / "out")
    assert result.code == 1
    assert "broken.png: expected a JPEG" in result.err
    assert "2 of 3 images" in result.err


def prediction(mask: list[list[int]], confidence: list[list[float]], score=None) -> Prediction:
    return Prediction(np.array(mask, np.uint8), np.array(confidence, np.float32), score)


def test_class_wise_threshold_is_at_most_the_median():
    made = prediction([[0, 0, 0, 1, 1, 1]], [[0.99, 0.95, 0.3, 0.5, 0.75, 0.25]])
    medians = median_confidence([Path("one")], lambda _: made, 3, lambda: None)
    assert medians == pytest.approx([0.95, 0.5, 1], abs=1 / 4096)
    chosen = accept(made, np.minimum(medians, np.float32(0.9)), 0)
    assert chosen.tolist() == [[True, True, False, True, True, False]]


def test_boundary_pixels_are_left_out():
    mask = np.zeros((7, 9), np.uint8)
    mask[:, 5:] = 3
    assert near_boundary(mask, 1)[0].tolist() == [False] * 4 + [True] * 2 + [False] * 3
    assert near_boundary(mask, 2)[0].tolist() == [False] * 3 + [True] * 4 + [False] * 2
    corner = np.zeros((3, 3), np.uint16)
    corner[0, 0] = 300
    assert near_boundary(corner, 1).tolist() == [[True, True, False]] * 2 + [[False] * 3]
    sure = prediction(mask.tolist(), np.ones((7, 9)).tolist())
    assert accept(sure, np.zeros(4, np.float32), 1).sum() == 7 * 7


def test_certified_error_excludes_images_unlike_those_of_the_fit(tmp_path):
    output = OutputPolicy.model_validate({"classes": CLASSES})
    scores = {"near": 0.5, "far": 0.49}

    def predict(path: Path) -> Prediction:
        return prediction([[0, 1]], [[0.9, 0.9]], scores[path.stem])

    paths = [Path("near.png"), Path("far.png")]
    certified = AcceptanceRule(0.5, max_error=0.05)
    done = write_pseudo_labels(paths, tmp_path, predict, certified, output, lambda: None)
    assert done.excluded == (paths[1],)
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == ["near.png"]
    assert [each.predicted for each in done.classes] == [1, 1, 0]
    plain = write_pseudo_labels(paths, tmp_path, predict, AcceptanceRule(0.5), output, lambda: None)
    assert plain.excluded == ()


def test_ignore_value_that_is_a_class_is_refused(tmp_path):
    output = OutputPolicy.model_validate({"classes": CLASSES, "ignore_index": 1})
    with pytest.raises(ArgumentError, match="expected an ignore_index that is no class, got 1"):
        write_pseudo_labels([], tmp_path, lambda _: None, AcceptanceRule(1), output, lambda: None)  # type: ignore[arg-type,return-value]
