"""Evaluation of a tiny model on drawn images, whose metrics are computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.calibration.methods.vector import Vector
from app.calibration.metrics.subsets import BOUNDARY
from app.datasets.images import find_pairs
from app.errors import ArgumentError, ConflictError, NotFoundError
from app.evaluation.evaluate import Comparison, LocalModel, Options, evaluate_model, score_sums
from app.inference.model_card import read_model_folder
from app.inference.postprocess import log_probability_strips
from app.inference.predictor import open_predictor
from app.inference.preprocess import Geometry
from app.serving.pipeline import StageTimer
from app.serving.segmenter import Segmenter, SegmentOptions, find_calibrator
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import StoredCalibrator
from tests.factories.models import write_onnx_model
from tests.factories.predictions import postprocessed
from tests.factories.service import (
    BLUE,
    GREEN,
    RED,
    SATURATED,
    SATURATED_AT_2,
    publish_temperature,
    solid,
)

OPTIONS = Options(ignore_index=255, max_pixels=10_000)
WRONG = (1 - SATURATED) / 2  # probability of a class other than the saturated one


def ignore_progress() -> None:
    """Do ignore_progress."""


def run_over(predictor, calibrator, pairs, options, advance) -> Comparison:
    """Evaluate a local model."""
    subject = LocalModel(predictor, calibrator, options.max_pixels, options.tta)
    return evaluate_model(subject, pairs, options, advance)


@pytest.fixture
def model(tmp_path):
    return write_onnx_model(tmp_path / "models", "tiny")


@pytest.fixture
def predictor(model):
    return open_predictor(read_model_folder(model), "cpu", 1)


def write_set(root: Path, **images: tuple[object, object]):
    """Save images with their label maps and pair them."""
    for name, (image, labels) in images.items():
        for folder, values in (("images", image), ("labels", labels)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(np.asarray(values, np.uint8)).save(root / folder / f"{name}.png")
    return find_pairs(root / "images", root / "labels")


@pytest.fixture
def pairs(tmp_path):
    """Write `half` (red, half correct), `void` (no labels) and `whole` (blue, all correct)."""
    half = np.repeat([[0] * 6 + [1] * 6], 8, axis=0)
    return write_set(
        tmp_path,
        half=(solid(RED), half),
        void=(solid(GREEN), np.full((8, 12), 255)),
        whole=(solid(BLUE), np.full((8, 12), 2)),
    )


def test_uncalibrated_metrics(predictor, pairs):
    done = run_over(predictor, None, pairs, OPTIONS, ignore_progress)
    measured = done.before.evaluation.result()
    half, void, whole = done.before.images

    assert (measured.images, measured.pixels) == (2, 192)
    assert half[:3] == pytest.approx((96, SATURATED - 0.5, 0.5))
    assert half.confidence == pytest.approx(SATURATED)
    assert half.confident_errors == 0.5
    assert void.pixels == 0
    assert math.isnan(void.ece)
    assert whole[:3] == pytest.approx((96, 1 - SATURATED, 1), abs=1e-6)
    assert measured.ece_image == pytest.approx((half.ece + whole.ece) / 2)
    assert measured.accuracy == 0.75
    assert measured.nll == pytest.approx(-0.75 * math.log(SATURATED) - 0.25 * math.log(WRONG))
    right = (1 - SATURATED) ** 2 + 2 * WRONG**2
    wrong = SATURATED**2 + (1 - WRONG) ** 2 + WRONG**2
    assert measured.brier == pytest.approx(0.75 * right + 0.25 * wrong, rel=1e-5)
    # Two columns either side of the labels' edge, half of them right.
    assert done.before.kind(BOUNDARY)[:3] == pytest.approx((32, SATURATED, 0.5))
    assert done.before.boundary_ece == pytest.approx(SATURATED - 0.5)
    assert (done.after, done.difference, done.labels_changed) == (None, None, 0)
    assert done.served is done.before


def test_calibrator_changes_confidence_but_no_label(predictor, model, pairs, tmp_path):
    version = publish_temperature(tmp_path / "artifacts", model, 2)
    store = ArtifactStore(tmp_path / "artifacts")
    stored = find_calibrator(store, predictor.folder, version)
    done = run_over(predictor, stored, pairs, OPTIONS, ignore_progress)
    plain = run_over(predictor, None, pairs, OPTIONS, ignore_progress)
    assert done.after is not None
    assert done.difference is not None

    assert done.before.evaluation.result() == plain.before.evaluation.result()
    assert done.served is done.after
    assert done.after.overall.confidence == pytest.approx(SATURATED_AT_2)
    assert done.after.overall.accuracy == 0.75
    # |conf - .5| shrinks by as much as |1 - conf| grows.
    assert done.difference.mean == pytest.approx(0, abs=1e-6)
    assert math.isnan(done.difference.low)  # of three images in one block
    assert done.labels_changed == 0


def test_calibrator_that_changes_labels_is_evaluated_with_them(predictor, model, pairs, tmp_path):
    version = publish_temperature(tmp_path / "artifacts", model, 2)
    known = ArtifactStore(tmp_path / "artifacts").load("tiny", version, predictor.folder.sha256)
    vector = Vector(3)
    vector.bias.copy_(torch.tensor([0.0, 8.0, 0.0]))  # red and blue pixels become class 1
    done = run_over(
        predictor, StoredCalibrator(known.manifest, vector), pairs, OPTIONS, ignore_progress
    )
    assert done.after is not None

    assert done.labels_changed == 1
    assert done.before.overall.accuracy == 0.75
    # Of 192 labelled pixels 48 are class 1; the logits (4, 8, 0) give it a high confidence.
    assert done.after.overall.accuracy == 0.25
    confidence = math.exp(8) / (math.exp(8) + math.exp(4) + 1)
    assert done.after.overall.confidence == pytest.approx(confidence)
    assert done.after.evaluation.confusion.sum(0).tolist() == [0, 192, 0]


def test_test_time_augmentation_is_evaluated(predictor, pairs):
    options = Options(ignore_index=255, max_pixels=10_000, tta="flip")
    done = run_over(predictor, None, pairs, options, ignore_progress)
    assert done.before.overall.confidence == pytest.approx(SATURATED)


def test_pixels_of_another_ignore_index_are_not_counted(predictor, pairs):
    options = Options(ignore_index=1, max_pixels=10_000)
    with pytest.raises(ArgumentError, match=r"void\.png: expected labels in 0\.\.2 or 1"):
        run_over(predictor, None, pairs, options, ignore_progress)
    done = run_over(predictor, None, [pairs[0]], options, ignore_progress)
    assert done.before.overall[:3] == pytest.approx((48, SATURATED, 1))


def test_intervals_are_by_group_or_by_block_of_eight_images(predictor, tmp_path):
    """Twenty images, every other one wrong: each group of two holds one of both."""
    images = {f"{n:02}": (solid(RED), np.full((8, 12), n % 2)) for n in range(20)}
    pairs = write_set(tmp_path, **images)

    def interval(groups):
        options = Options(ignore_index=255, max_pixels=10_000, groups=groups)
        done = run_over(predictor, None, pairs, options, ignore_progress)
        return done.ece_interval(done.before)

    mean = (SATURATED + 1 - SATURATED) / 2
    assert interval([n // 2 for n in range(20)]) == pytest.approx((mean, mean, mean))
    by_image = interval(range(20))
    assert by_image.low < mean - 0.1 < mean + 0.1 < by_image.high
    by_block = interval(None)  # 3 blocks
    assert by_block == pytest.approx((mean, math.nan, math.nan), nan_ok=True)


def test_worst_images_are_listed_first_and_perfect_ones_not_at_all(predictor, tmp_path):
    grey = np.full((8, 12, 3), 90, np.uint8)
    pairs = write_set(
        tmp_path,
        a=(solid(RED), np.zeros((8, 12))),
        b=(solid(RED), np.ones((8, 12))),
        c=(grey, np.ones((8, 12))),  # wrong, but at 1/3: no confident error
        d=(solid(GREEN), np.repeat([[0] * 6 + [1] * 6], 8, axis=0)),
    )
    done = run_over(predictor, None, pairs, OPTIONS, ignore_progress)
    assert done.worst() == {
        1: ["calibration", "confident errors"],
        3: ["calibration", "confident errors"],
        2: ["calibration"],
        0: ["calibration"],
    }
    few = Options(ignore_index=255, max_pixels=10_000, worst=1)
    assert list(run_over(predictor, None, pairs, few, ignore_progress).worst()) == [1]


def test_progress_is_reported_for_every_image(predictor, pairs):
    calls = []
    run_over(predictor, None, pairs, OPTIONS, lambda: calls.append(1))
    assert len(calls) == 3


def test_set_without_a_label_is_rejected(predictor, pairs):
    with pytest.raises(ArgumentError, match=r"expected labelled pixels, got none in 1 label maps"):
        run_over(predictor, None, [pairs[1]], OPTIONS, ignore_progress)


def test_labels_of_another_size_are_rejected(predictor, tmp_path):
    pairs = write_set(tmp_path, a=(solid(RED), np.zeros((4, 6))))
    with pytest.raises(ArgumentError, match=r"a\.png: expected labels of \(8, 12\).*\(4, 6\)"):
        run_over(predictor, None, pairs, OPTIONS, ignore_progress)


def test_calibrators_are_found_by_id_or_as_active(predictor, model, tmp_path):
    store = ArtifactStore(tmp_path / "artifacts")
    folder = predictor.folder
    assert find_calibrator(store, folder, "none") is None
    assert find_calibrator(store, folder, "active") is None
    version = publish_temperature(tmp_path / "artifacts", model, 2)
    active = find_calibrator(store, folder, "active")
    assert active is not None
    assert active.manifest.id == version
    with pytest.raises(NotFoundError):
        find_calibrator(store, folder, "20200101T000000Z-temperature-000000")
    other = read_model_folder(write_onnx_model(tmp_path / "models", "other", num_classes=4))
    with pytest.raises(ConflictError):
        find_calibrator(store, other, version)


@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_evaluated_predictions_equal_those_of_the_service(predictor, model, tmp_path, tta):
    """Mask and confidence are equal at every pixel of an image that needs padding."""
    image = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    (pair,) = write_set(tmp_path, noise=(image, np.zeros((37, 51))))
    version = publish_temperature(tmp_path / "artifacts", model, 2)
    store = ArtifactStore(tmp_path / "artifacts")
    segmenter = Segmenter({"tiny": predictor}, None, store, 10_000)
    answer = segmenter.segment(pair.image.read_bytes(), SegmentOptions(tta=tta), StageTimer())

    stored = find_calibrator(store, predictor.folder, version)
    plain, calibrated, _ = LocalModel(predictor, stored, 10_000, tta).predict(pair)

    assert calibrated is not None
    assert (calibrated.prediction.mask == answer.prediction.mask).all()
    assert (calibrated.prediction.confidence == answer.prediction.confidence).all()
    assert (plain.prediction.confidence >= answer.prediction.confidence).all()


# Distributions at the image's size


@pytest.mark.parametrize(
    ("image", "resized", "padded", "cells"),
    [((8, 12), (8, 12), (8, 12), (4, 6)), ((37, 23), (74, 46), (96, 64), (24, 16)),
     ((300, 7), (300, 7), (320, 32), (10, 1))],
)  # fmt: skip
def test_log_probability_strips_agree_with_the_prediction(
    image, resized, padded, cells, monkeypatch
):
    geometry = Geometry(image, resized, padded)
    grid = torch.randn(5, *cells, generator=torch.Generator().manual_seed(0)) * 4
    mask, confidence = postprocessed(grid, grid, geometry)
    monkeypatch.setattr("app.inference.postprocess.STRIP_BYTES", 4 * 5 * image[1] * 7)
    strips = list(log_probability_strips(grid, geometry))

    assert len(strips) == -(-image[0] // 7)
    whole = torch.cat([part for _, part in strips], dim=1)
    assert [rows.start for rows, _ in strips] == list(range(0, image[0], 7))
    assert whole.shape == (5, *image)
    assert whole.exp().sum(0).numpy() == pytest.approx(np.ones(image), abs=1e-5)
    assert (whole.argmax(0).numpy() == mask).mean() > 0.999  # except at ties
    assert whole.exp().amax(0).numpy() == pytest.approx(confidence, abs=1e-5)


def test_score_sums_by_hand(monkeypatch):
    probabilities = torch.tensor(
        [[0.95, 0.03, 0.02], [0.85, 0.10, 0.05], [0.25, 0.65, 0.10],
         [0.10, 0.15, 0.75], [0.45, 0.35, 0.20], [0.05, 0.92, 0.03]]
    )  # fmt: skip
    labels = torch.tensor([[0], [1], [1], [-1], [2], [1], [2]])
    rows = torch.cat([probabilities[:3], torch.full((1, 3), 1 / 3), probabilities[3:]])
    monkeypatch.setattr("app.inference.postprocess.STRIP_BYTES", 4 * 3 * 2)
    grid = rows.log().T[:, :, None]  # [3,7,1]
    nll, brier = score_sums(grid, Geometry((7, 1), (7, 1), (7, 1)), labels)
    assert nll / 6 == pytest.approx(1.27145, abs=1e-5)
    assert brier / 6 == pytest.approx(0.71393, abs=1e-5)


def test_nll_of_impossible_classes_is_bounded():
    grid = torch.tensor([0.0, -1000.0])[:, None, None]
    one = Geometry((1, 1), (1, 1), (1, 1))
    nll, brier = score_sums(grid, one, torch.tensor([[1]]))
    assert nll == pytest.approx(-math.log(1e-12))
    assert brier == pytest.approx(2)
