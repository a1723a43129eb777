"""The drift monitor reports `stale` where predictions differ from the reference images."""

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from app.calibration.drift import Reference, histogram
from app.calibration.methods.identity import Identity
from app.calibration.predictions import Prediction
from app.inference.model_card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from app.schemas.calibrator import Manifest
from app.serving.drift_monitor import DriftMonitor, DriftPolicy
from app.storage.manifest import StoredCalibrator
from benchmarks.paper.seen_corruptions import corrupt
from tests.conftest import MakeClient
from tests.factories.predictions import postprocessed
from tests.factories.service import post, publish_temperature, solid

CLASSES = 3
MODELS = Path(__file__).parents[2] / "models"

Arrays = tuple[NDArray[np.unsignedinteger], NDArray[np.float32]]


def stored(reference: Reference | None, version: str = "a", classes: int = CLASSES):
    manifest = Manifest(
        id=version, model="street", model_sha256="0" * 64, method="identity", num_classes=classes,
        fitted_at="2026-01-02T03:04:05Z", images=4, pixels=400, ece_before=0.1, ece_after=0.1,
    )  # fmt: skip
    return StoredCalibrator(manifest, Identity(classes), reference)


def draw_prediction(rng: np.random.Generator, alpha: float = 8.0) -> Arrays:
    """Draw mask and confidence of an image; confidence follows about beta(alpha, 1)."""
    confidence = rng.beta(alpha * rng.uniform(0.8, 1.25), 1, (20, 30)).astype(np.float32)
    return rng.choice(CLASSES, (20, 30), p=rng.dirichlet((8, 4, 2))).astype(np.uint8), confidence


def reference_to(predictions: list[Arrays], classes: int = CLASSES) -> Reference:
    rows = [
        torch.from_numpy(histogram(confidence, mask, classes)).float()
        for mask, confidence in predictions
    ]
    return Reference(torch.stack(rows))


def feed(monitor: DriftMonitor, version: StoredCalibrator, predictions: list[Arrays]) -> list[bool]:
    return [monitor.observe("street", version, Prediction(*one)).stale for one in predictions]


def test_calibrator_becomes_stale_under_drift_and_recovers():
    rng = np.random.default_rng(0)
    version = stored(reference_to([draw_prediction(rng) for _ in range(40)]))
    monitor = DriftMonitor(DriftPolicy(window=16, patience=8))

    assert not any(feed(monitor, version, [draw_prediction(rng) for _ in range(200)]))
    drifted = feed(monitor, version, [draw_prediction(rng, alpha=2.0) for _ in range(40)])
    assert not any(drifted[:7])  # patience
    assert all(drifted[24:])  # a window full of them, and patience
    assert monitor.is_stale("street", "a")
    recovering = feed(monitor, version, [draw_prediction(rng) for _ in range(40)])
    assert recovering[0]
    assert not any(recovering[-8:])
    assert not monitor.is_stale("street", "a")


def test_state_is_unknown_until_window_is_full():
    rng = np.random.default_rng(0)
    version = stored(reference_to([draw_prediction(rng) for _ in range(40)]))
    monitor = DriftMonitor(DriftPolicy(window=16, patience=1))

    assert not any(feed(monitor, version, [draw_prediction(rng, alpha=1.0) for _ in range(15)]))
    assert np.isnan(monitor.states()["street"].divergence.confidence)
    assert feed(monitor, version, [draw_prediction(rng, alpha=1.0)]) == [True]


def test_another_version_starts_a_new_window():
    rng = np.random.default_rng(0)
    reference = reference_to([draw_prediction(rng) for _ in range(40)])
    monitor = DriftMonitor(DriftPolicy(window=8, patience=1))

    assert feed(monitor, stored(reference), [draw_prediction(rng, alpha=1.0) for _ in range(8)])[-1]
    assert feed(monitor, stored(reference, "b"), [draw_prediction(rng, alpha=1.0)]) == [False]
    assert not monitor.is_stale("street", "a")
    assert monitor.states()["street"].calibrator == "b"


@pytest.mark.parametrize("images", [0, 7])
def test_calibrator_without_sufficient_reference_is_never_stale(images):
    rng = np.random.default_rng(0)
    reference = reference_to([draw_prediction(rng) for _ in range(images)]) if images else None
    monitor = DriftMonitor(DriftPolicy(window=8, patience=1))

    assert not any(feed(monitor, stored(reference), [draw_prediction(rng, 1.0) for _ in range(30)]))


def test_monitor_is_thread_safe():
    rng = np.random.default_rng(0)
    version = stored(reference_to([draw_prediction(rng) for _ in range(40)]))
    monitor, one = DriftMonitor(DriftPolicy(window=8, patience=1)), draw_prediction(rng)
    threads = [
        threading.Thread(target=feed, args=(monitor, version, [one] * 100)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lone = DriftMonitor(DriftPolicy(window=8, patience=1))
    feed(lone, version, [one] * 8)

    assert monitor.states()["street"].divergence == pytest.approx(
        lone.states()["street"].divergence
    )


# Through the service


GREY = (128, 128, 128)
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def test_stale_is_reported_in_responses_calibrators_and_metrics(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
) -> None:
    saturated = np.float32(np.exp(2) / (np.exp(2) + 2))
    known = [(np.full((8, 12), i % 3, np.uint8), np.full((8, 12), saturated)) for i in range(24)]
    version = publish_temperature(
        artifacts_dir, models_dir / "tiny", 2, reference=reference_to(known)
    )
    client = make_client(drift_window=12, drift_patience=2)

    def stale_after(colors: list[tuple[int, int, int]], **query: str | float) -> bool:
        last = [post(client, solid(color), **query).json() for color in colors][-1]
        return bool(last["calibration"]["stale"])

    def gauge() -> str:
        text = client.get("/metrics").text
        return str(re.findall(r'segcal_calibrator_stale\{model="tiny"\} (\S+)', text)[0])

    assert not stale_after([*COLORS] * 8)
    assert gauge() == "0.0"
    assert not stale_after([GREY] * 20, calibrator="none")
    assert not stale_after([GREY] * 20, tta="flip")
    assert not stale_after([GREY] * 20, calibrator=version)
    assert stale_after([GREY] * 20, min_confidence=0.99)
    assert client.get(f"/calibrators/{version}").json()["stale"]
    assert gauge() == "1.0"
    assert (
        'segcal_drift_divergence{histogram="classes",model="tiny"}' in client.get("/metrics").text
    )
    assert not stale_after([GREY], calibrator="none")
    assert not stale_after([*COLORS] * 8)
    assert gauge() == "0.0"


# On CamVid frames


@pytest.fixture(scope="module")
def street() -> Predictor:
    return open_predictor(read_model_folder(MODELS / "camvid-street"), "cpu", 1)


def predict_images(predictor: Predictor, images: list[NDArray[np.uint8]]) -> list[Arrays]:
    predictions: list[Arrays] = []
    for image in images:
        planes, geometry = predictor.prepare(image)
        logits = predictor.logits(planes)[0]
        predictions.append(postprocessed(logits, logits, geometry))
    return predictions


def becomes_stale(reference: list[Arrays], live: list[Arrays], watch: DriftPolicy) -> bool:
    version = stored(reference_to(reference, 11), classes=11)
    return any(feed(DriftMonitor(watch), version, live))


@pytest.mark.skipif(not os.environ.get("CAMVID_DIR"), reason="CAMVID_DIR names no CamVid folder")
def test_dusk_and_fog_are_detected_but_held_out_day_frames_are_not(street: Predictor) -> None:
    folder = Path(os.environ["CAMVID_DIR"])

    def read(names: list[Path]) -> list[NDArray[np.uint8]]:
        return [np.asarray(Image.open(name).convert("RGB")) for name in names]

    frames = sorted((folder / "val").glob("*.png"))
    places = np.random.default_rng(0).permutation(len(frames))
    reference = predict_images(street, read([frames[i] for i in sorted(places[:45])]))
    days = read([frames[i] for i in sorted(places[45:])])
    watch = DriftPolicy(window=32, patience=16)

    assert not becomes_stale(reference, predict_images(street, days), watch)
    fog = [corrupt(image, "fog", 4, index) for index, image in enumerate(days)]
    assert becomes_stale(reference, predict_images(street, fog), watch)
    dusk = read(sorted((folder / "train").glob("0001TP*.png"))[:56])
    assert becomes_stale(reference, predict_images(street, dusk), watch)
