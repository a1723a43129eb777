"""`segcal models export`: one ONNX file that predicts as the service does, or a reason."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from app.calibration.base import FitContext
from app.calibration.registry import build, discover
from app.conversion.export_model import compare, export_model, require_agreement
from app.conversion.exported_modules import (
    NetworkInput,
    Postprocessing,
    Preprocessing,
    padded_size,
    resized_size,
)
from app.errors import ModelError
from app.inference.model_card import InputPolicy, read_model_folder
from app.inference.outputs import LogitsOutput
from app.inference.predictor import open_predictor
from app.inference.preprocess import plan, preprocess
from app.serving.pipeline import predict_image
from app.storage.artifacts import ArtifactStore
from tests.cli.test_main import Run, run
from tests.factories.logits import synthetic_set
from tests.factories.models import onnx_network, write_card, write_onnx_model
from tests.factories.service import SATURATED_AT_2, publish_calibrator, publish_temperature, thirds

__all__ = ["run"]  # the fixture

METHODS = [method for method in discover() if "+" not in method]
PLAIN = LogitsOutput("logits", channels_last=False, one_channel=False, activation="none")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def fitted(method: str, num_classes: int):
    calibrator = build(method, num_classes)
    calibrator.fit(synthetic_set(num_classes), FitContext(seed=1))
    return calibrator.eval()


def session_of(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("method", [*METHODS, "selective+dirichlet"])
def test_postprocessing_of_every_method_is_that_of_the_service(method, tmp_path):
    predictor = open_predictor(read_model_folder(write_onnx_model(tmp_path, "four", 4)), "cpu", 1)
    calibrator = fitted(method, 4)
    module = Postprocessing(predictor.folder.card.input, PLAIN, calibrator, 4)
    for height, width in ((31, 45), (60, 402)):
        image = noise(height, width)
        prepared = predictor.prepare_windows(image)
        pixels = torch.from_numpy(image)
        labels, confidence, *score = module(predictor.grid(prepared), pixels, pixels)
        served = predict_image(image, predictor, calibrator)
        same = labels.numpy() == served.mask  # but for ties
        assert same.mean() >= 0.999
        assert np.abs(confidence.numpy() - served.confidence)[same].max() < 1e-4
        assert [round(float(value), 4) for value in score] == (
            [] if served.in_distribution is None else [round(served.in_distribution, 4)]
        )


POLICIES = (
    InputPolicy(multiple_of=8),
    InputPolicy(size=(64, 96), multiple_of=32),
    InputPolicy(size={"short_side": 33}, multiple_of=8),  # type: ignore[arg-type]
    InputPolicy(size=(64, 96), fit="letterbox", multiple_of=32),
)


@pytest.mark.parametrize("policy", POLICIES)
def test_sizes_are_those_of_the_service(policy):
    for size in ((1, 1), (33, 66), (40, 100), (97, 131), (64, 96), (50, 75), (128, 24)):
        geometry = plan(size, policy)
        resized = resized_size(size, policy)
        assert (resized, padded_size(resized, policy)) == (geometry.resized, geometry.padded)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_resized_input_differs_by_at_most_one_level(resample):
    policy = InputPolicy(
        size=(48, 64), resample=resample, channels="bgr", mean=(0.5, 0.25, 0), std=(1, 2, 0.5)
    )
    for image in (noise(97, 131), noise(20, 30)):
        expected, _ = preprocess(image, policy)
        planes, pixels = Preprocessing(policy, NetworkInput())(torch.from_numpy(image))
        assert pixels.shape == (48, 64, 3)
        levels = np.abs(planes.numpy() - expected) * 255 * np.array((0.5, 2, 1))[:, None, None]
        assert levels.max() <= 1.001


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export `tiny` with a temperature of 2; return its folder, its artefacts and the file."""
    root = tmp_path_factory.mktemp("exported")
    model = write_onnx_model(root / "models", "tiny")
    version = publish_temperature(root / "artifacts", model, 2)
    folder = read_model_folder(model)
    stored = ArtifactStore(root / "artifacts").load("tiny", version, folder.sha256)
    predictor = open_predictor(folder, "cpu", 1)
    return predictor, stored, export_model(predictor, stored, [thirds()])


def test_file_has_labels_and_confidence_at_the_image_s_size(exported):
    _, _, done = exported
    labels, confidence = session_of(done.data).run(None, {"image": thirds()})
    assert (labels.dtype, confidence.dtype) == (np.uint8, np.float32)
    assert labels[:, [0, 5, 11]].tolist() == [[0, 1, 2]] * 8
    assert confidence[:, [0, 5, 11]] == pytest.approx(SATURATED_AT_2, abs=1e-6)
    assert done.agreement.images == 4
    assert done.agreement.confidence_difference < 1e-5


def test_metadata_hold_the_certificate(exported):
    predictor, stored, done = exported
    metadata = session_of(done.data).get_modelmeta().custom_metadata_map
    certificate = json.loads(metadata["segcal.certificate"])
    assert certificate["model_sha256"] == predictor.folder.sha256
    assert certificate["calibrator"] == stored.manifest.id
    assert (certificate["ece_before"], certificate["ece_after"]) == (0.25, 0.125)
    assert certificate["thresholds"] == []
    assert certificate["agreement"]["label_agreement"] > 0.9999
    assert json.loads(metadata["segcal.classes"]) == ["class-0", "class-1", "class-2"]
    assert json.loads(metadata["segcal.preprocessing"])["multiple_of"] == 2
    onnx.checker.check_model(onnx.load_from_string(done.data))


def test_file_that_differs_from_the_service_is_refused(exported):
    predictor, _, done = exported
    agreement = compare(done.data, predictor, None, [thirds()])  # the plain softmax
    with pytest.raises(
        ModelError, match=r"and confidence within 0\.01, got .* a difference of 0\.2"
    ):
        require_agreement(predictor.folder.card, agreement)


def test_contextual_is_exported_with_its_score(tmp_path, artifacts_dir):
    model = write_onnx_model(tmp_path, "three")
    version = publish_calibrator(artifacts_dir, model, fitted("contextual", 3))
    folder = read_model_folder(model)
    stored = ArtifactStore(artifacts_dir).load("three", version, folder.sha256)
    predictor = open_predictor(folder, "cpu", 1)
    done = export_model(predictor, stored)
    image = noise(50, 700)  # whose grid is subsampled by 3
    labels, confidence, score = session_of(done.data).run(None, {"image": image})
    served = predict_image(image, predictor, stored.calibrator)
    same = labels == served.mask
    assert same.mean() >= 0.999
    assert np.abs(confidence - served.confidence)[same].max() < 1e-4
    assert float(score) == pytest.approx(served.in_distribution, abs=1e-4)


def test_half_precision_with_channels_last_and_letterbox(tmp_path):
    model = write_onnx_model(
        tmp_path, "last", 300, size=[32, 48], fit="letterbox", multiple_of=16, channels="bgr"
    )
    network = onnx_network(300)
    graph, half = network.graph, TensorProto.FLOAT16
    graph.node.insert(0, helper.make_node("Cast", ["planes"], ["image"], to=TensorProto.FLOAT))
    graph.node.insert(0, helper.make_node("Transpose", ["given"], ["planes"], perm=[0, 3, 1, 2]))
    graph.node.append(helper.make_node("Transpose", ["logits"], ["moved"], perm=[0, 2, 3, 1]))
    graph.node.append(helper.make_node("Cast", ["moved"], ["halved"], to=half))
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("given", half, [1, 32, 48, 3]))
    graph.output.append(helper.make_tensor_value_info("halved", half, [1, 16, 24, 300]))
    onnx.save(network, model / "model.onnx")
    predictor = open_predictor(read_model_folder(model), "cpu", 1)
    done = export_model(predictor, None)
    labels, _ = session_of(done.data).run(None, {"image": noise(61, 47)})
    assert labels.dtype == np.uint16
    assert (labels == predict_image(noise(61, 47), predictor, None).mask).mean() >= 0.999


def test_command_writes_a_file(run: Run, tmp_path, models_dir, artifacts_dir):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    out = tmp_path / "tiny.onnx"
    result = run("models", "export", "tiny", "--out", out)
    assert result.code == 0, result.err
    assert f"tiny with calibrator {version}" in result.err
    assert "on 3 images 99.99" in result.err  # ties of two classes
    assert [value.name for value in session_of(out.read_bytes()).get_outputs()] == [
        "labels", "confidence",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({"mode": "slide", "crop": [8, 8], "window_stride": [4, 4]}, 'got "slide"'),
        ({"size": [8, 8], "resample": "area"}, "which ONNX has no operator for"),
    ],
)
def test_preprocessing_without_operator_is_refused(run: Run, tmp_path, models_dir, card, reason):
    write_card(models_dir / "tiny", **card)
    out: Path = tmp_path / "tiny.onnx"
    result = run("models", "export", "tiny", "--out", out)
    assert result.code == 2
    assert reason in result.err
    assert not out.exists()
