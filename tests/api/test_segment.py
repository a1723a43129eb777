"""`POST /segment`: masks, confidence, calibration block, thresholds and headers."""

import base64
import io
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from app.calibration.methods.contextual import Contextual
from app.inference.model_card import read_model_folder
from app.schemas.calibrator import CertifiedThreshold
from app.serving.segmenter import guarantee_of
from app.storage.artifacts import ArtifactStore
from tests.conftest import MakeClient
from tests.factories.models import expected_logits, write_card, write_onnx_model
from tests.factories.service import (
    BLUE,
    GREEN,
    RED,
    SATURATED,
    SATURATED_AT_2,
    THIRDS_MASK,
    assert_problem,
    decoded,
    encoded,
    post,
    publish_calibrator,
    publish_temperature,
    solid,
    thirds,
)

NPZ = {"Accept": "application/x-npz"}
PNG = {"Accept": "image/png"}

# Half a red image is saturated, half is pale: confidences 0.9647 and 0.7882, mixed between.
HALVES = np.concatenate([solid(RED, 4), solid((128, 0, 0), 4)])


def arrays(client: TestClient, image: NDArray[np.uint8] | bytes, **query: str | float):
    """Return mask [H,W] and confidence [H,W] of an image, from the npz response."""
    response = post(client, image, NPZ, **query)
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content), allow_pickle=False) as data:
        assert set(data.files) == {"mask", "confidence"}
        return data["mask"], data["confidence"]


def test_json_has_exactly_the_fields_of_the_contract(client):
    body = post(client, thirds()).json()

    assert list(body) == [
        "id", "model", "width", "height", "classes", "mean_confidence", "abstained_fraction",
        "threshold", "calibration", "links",
    ]  # fmt: skip
    assert body["id"]
    assert body["model"] == "tiny"
    assert (body["width"], body["height"]) == (12, 8)
    assert body["abstained_fraction"] == 0.0
    assert body["threshold"] is None
    assert isinstance(body["mean_confidence"], float)


def test_json_counts_the_classes_of_the_mask(client):
    mask, confidence = arrays(client, thirds())
    classes = post(client, thirds()).json()["classes"]

    assert (mask == THIRDS_MASK).all()
    assert [entry["id"] for entry in classes] == [0, 1, 2]
    assert [entry["name"] for entry in classes] == ["class-0", "class-1", "class-2"]
    assert classes[0]["color"] == "#000000"
    for entry in classes:
        assert list(entry) == ["id", "name", "color", "pixels", "fraction", "mean_confidence"]
        assert entry["pixels"] == 32
        assert entry["fraction"] == pytest.approx(1 / 3)
        here = confidence[mask == entry["id"]].astype(float)
        assert entry["mean_confidence"] == pytest.approx(here.mean(), abs=1e-3)


def test_json_leaves_out_classes_that_are_absent(client):
    body = post(client, solid(GREEN), calibrator="none").json()

    assert [entry["id"] for entry in body["classes"]] == [1]
    assert body["classes"][0]["pixels"] == 96
    assert body["classes"][0]["fraction"] == 1.0
    assert body["classes"][0]["mean_confidence"] == pytest.approx(SATURATED, abs=1e-6)
    assert body["mean_confidence"] == pytest.approx(SATURATED, abs=1e-6)


def test_calibration_block_describes_the_calibrator(client, shared_folder: Path):
    active = ArtifactStore(shared_folder / "artifacts").active_id("tiny")
    block = post(client, thirds()).json()["calibration"]

    assert block == {
        "calibrator": active,
        "method": "temperature",
        "model_sha256": read_model_folder(shared_folder / "models" / "tiny").sha256,
        "fitted_at": "2026-01-02T03:04:05Z",
        "ece_before": 0.25,
        "ece_after": 0.125,
        "images": 4,
        "stale": False,
        "in_distribution": None,
        "guarantee": None,
    }
    assert datetime.fromisoformat(block["fitted_at"]).tzinfo is not None


@pytest.mark.parametrize(("threshold", "score"), [(1e9, 1.0), (1e-9, 0.0)])
def test_calibration_block_holds_the_in_distribution_score(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path, threshold, score
):
    calibrator = Contextual(3)
    calibrator.detector.offset.fill_(1.0)  # of the log-odds of every pixel
    calibrator.score.precision.fill_diagonal_(1.0)
    calibrator.score.threshold.fill_(threshold)
    publish_calibrator(artifacts_dir, models_dir / "tiny", calibrator)
    body = post(make_client(), solid(GREEN)).json()

    assert body["calibration"]["in_distribution"] == score
    odds = SATURATED / (1 - SATURATED) * math.exp(score)
    assert body["mean_confidence"] == pytest.approx(odds / (1 + odds), abs=1e-5)


def test_calibration_block_without_a_calibrator_is_empty(client):
    block = post(client, thirds(), calibrator="none").json()["calibration"]

    assert block["calibrator"] == "none"
    assert len(block["model_sha256"]) == 64
    assert (block["fitted_at"], block["ece_before"], block["ece_after"]) == (None, None, None)
    assert (block["images"], block["stale"]) == (0, False)


@pytest.mark.parametrize("part", ["mask", "confidence", "heatmap", "overlay", "data"])
def test_link_resolves_to_the_result(client, part):
    link = post(client, thirds()).json()["links"][part]
    answer = client.get(link)

    assert answer.status_code == 200
    kind = "application/x-npz" if part == "data" else "image/png"
    assert answer.headers["content-type"] == kind


def test_included_mask_is_the_mask_image(client):
    response = post(client, thirds(), include="mask")
    mask = response.json()["mask"]

    assert list(mask) == ["format", "data"]
    assert mask["format"] == "png"
    assert base64.b64decode(mask["data"]) == client.get(response.json()["links"]["mask"]).content
    assert "confidence" not in response.json()
    assert "rle" not in response.json()


def test_included_confidence_is_eight_bit_grey(client):
    body = post(client, solid(BLUE), include="confidence", calibrator="none").json()
    image = decoded(base64.b64decode(body["confidence"]["data"]))

    assert image.mode == "L"
    assert (np.asarray(image) == 246).all()  # round(255 * 0.96466) = round(245.99)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools, in its decoder
def test_included_rle_is_the_mask_in_coco_runs(client):
    runs = post(client, thirds(), include="rle").json()["rle"]

    assert [run["class_id"] for run in runs] == [0, 1, 2]
    for run in runs:
        assert run["size"] == [8, 12]
        decoded_run = coco.decode({"size": run["size"], "counts": run["counts"].encode()})
        assert (decoded_run == (run["class_id"] == THIRDS_MASK)).all()


def test_included_polygons_are_the_columns_of_the_mask(client):
    body = post(client, thirds(), include="polygons").json()

    assert body["polygons"] == [
        {
            "class_id": k,
            "polygons": [
                {"exterior": [[4 * k + 4, 0], [4 * k + 4, 8], [4 * k, 8], [4 * k, 0]], "holes": []}
            ],
        }
        for k in range(3)
    ]


def test_include_takes_a_list(client):
    body = post(client, thirds(), include="mask,confidence,rle").json()

    assert {"mask", "confidence", "rle"} <= set(body)


def test_mask_image_is_indexed_with_the_classes_palette(client):
    response = post(client, thirds(), output="mask")
    image = decoded(response.content)
    colors = [entry["color"] for entry in client.get("/models/tiny").json()["classes"]]

    assert response.headers["content-type"] == "image/png"
    assert image.mode == "P"
    assert image.size == (12, 8)
    assert (np.asarray(image) == THIRDS_MASK).all()
    palette = image.getpalette()
    assert palette is not None
    assert [bytes(palette[3 * k : 3 * k + 3]).hex() for k in range(3)] == [c[1:] for c in colors]


def test_confidence_image_is_255_times_the_probability(client):
    image = decoded(post(client, solid(RED), output="confidence").content)

    assert image.mode == "L"
    assert (np.asarray(image) == 201).all()  # round(255 * 0.78699) = round(200.68)


def test_heatmap_image_brightens_with_confidence(client):
    grey = decoded(post(client, HALVES, output="heatmap").content).convert("L")

    assert grey.size == (12, 8)
    assert np.asarray(grey)[0, 0] > np.asarray(grey)[7, 0]


def test_overlay_image_blends_the_palette_into_the_image(client):
    image = np.asarray(decoded(post(client, solid(RED), output="overlay").content))

    assert image.shape == (8, 12, 3)
    assert (image == (127, 0, 0)).all()  # half red, half the black of class 0


def test_npz_holds_mask_and_half_precision_confidence(client):
    mask, confidence = arrays(client, thirds())

    assert (mask.dtype, mask.shape) == (np.uint8, (8, 12))
    assert (confidence.dtype, confidence.shape) == (np.float16, (8, 12))


@pytest.mark.parametrize("headers", [{}, PNG, NPZ])
def test_headers_name_model_calibrator_result_and_time(client, shared_folder, headers):
    response = post(client, thirds(), headers)
    active = ArtifactStore(shared_folder / "artifacts").active_id("tiny")
    stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))

    assert response.status_code == 200
    assert response.headers["x-model"] == "tiny"
    assert response.headers["x-calibrator"] == active
    result = response.headers["x-result-id"]
    assert client.get(f"/results/{result}/mask.png").status_code == 200
    assert set(stages) == {
        "decode", "preprocess", "inference", "calibration", "encode", "total",
    }  # fmt: skip
    total = float(stages.pop("total"))
    assert 0 <= sum(map(float, stages.values())) <= total + 0.05


def test_result_id_is_the_id_in_the_body(client):
    response = post(client, thirds())

    assert response.headers["x-result-id"] == response.json()["id"]
    assert response.json()["links"]["mask"] == f"/results/{response.json()['id']}/mask.png"


def test_header_is_none_without_a_calibrator(client):
    assert post(client, thirds(), calibrator="none").headers["x-calibrator"] == "none"


def test_multipart_and_raw_bodies_give_the_same_result(client):
    data = encoded(thirds())
    form = client.post("/segment", files={"image": ("street.png", data, "image/png")}, headers=NPZ)
    raw = client.post("/segment", content=data, headers={"Content-Type": "image/jpeg", **NPZ})

    assert form.status_code == raw.status_code == 200
    assert form.content == raw.content


def test_multipart_takes_other_fields_beside_the_image(client):
    response = client.post(
        "/segment", files={"image": ("a.png", encoded(thirds()))}, data={"note": "mine"}
    )

    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_every_listed_format_is_served(client, kind):
    mask, _ = arrays(client, encoded(solid(BLUE, 16, 24), kind))

    assert mask.shape == (16, 24)
    assert (mask == 2).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_gives_an_upright_mask(client, orientation):
    stored = np.repeat(np.repeat(thirds(), 4, axis=0), 4, axis=1)  # [32,48,3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What a viewer does: 3 turns by 180 degrees, 6 clockwise, 8 counter-clockwise.
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    upright = np.rot90(np.repeat(np.repeat(THIRDS_MASK, 4, axis=0), 4, axis=1), turns)
    mask, _ = arrays(client, encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))

    assert mask.shape == upright.shape
    assert (mask == upright).all()


def test_mask_has_the_size_of_the_image(client):
    mask, confidence = arrays(client, solid(GREEN, 7, 5))

    assert mask.shape == confidence.shape == (7, 5)
    assert (mask == 1).all()


def test_image_of_one_pixel_is_served(client):
    mask, _ = arrays(client, solid(BLUE, 1, 1))

    assert mask.tolist() == [[2]]


def test_calibrator_none_is_the_plain_softmax(client):
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    # Two by two pixels are one cell: its logits hold everywhere.
    planes = (image / 255).astype(np.float32).transpose(2, 0, 1)[None]
    logits = expected_logits(planes)[0, :, 0, 0]
    softmax = np.exp(logits) / np.exp(logits).sum()
    mask, confidence = arrays(client, image, calibrator="none")

    assert (mask == logits.argmax()).all()
    assert confidence == pytest.approx(np.full((2, 2), softmax.max()), abs=1e-3)


def test_calibrator_active_divides_by_the_temperature_and_keeps_labels(client):
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    plain, _ = arrays(client, image, calibrator="none")
    active, _ = arrays(client, image, calibrator="active")
    _, confidence = arrays(client, solid(RED), calibrator="active")

    assert (plain == active).all()
    assert confidence == pytest.approx(np.full((8, 12), SATURATED_AT_2), abs=1e-3)


def test_calibrator_by_id_is_used_although_another_is_active(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    other = publish_temperature(artifacts_dir, models_dir / "tiny", 4, activate=False)
    response = post(make_client(), solid(RED), calibrator=other)

    assert response.headers["x-calibrator"] == other
    e = math.exp(4 / 4)
    assert response.json()["mean_confidence"] == pytest.approx(e / (e + 2), abs=1e-6)


def test_no_calibrator_is_used_without_active_version(make_client: MakeClient):
    response = post(make_client(), solid(RED))

    assert response.headers["x-calibrator"] == "none"
    assert response.json()["calibration"]["calibrator"] == "none"
    assert response.json()["mean_confidence"] == pytest.approx(SATURATED, abs=1e-6)


def test_active_calibrator_of_another_model_file_is_reported_as_none(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path, caplog
):
    publish_temperature(artifacts_dir, models_dir / "tiny", 2, sha256="0" * 64)
    client = make_client()
    post(client, solid(RED))
    response = post(client, solid(RED))

    assert caplog.text.count("the active calibrator of tiny can't be used") == 1
    assert response.headers["x-calibrator"] == "none"
    assert response.json()["calibration"]["calibrator"] == "none"
    assert response.json()["mean_confidence"] == pytest.approx(SATURATED, abs=1e-6)


def test_changed_preprocessing_ends_the_use_of_a_calibrator(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    write_card(models_dir / "tiny", mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    client = make_client()

    assert post(client, solid(RED)).headers["x-calibrator"] == "none"
    assert client.get("/models/tiny").json()["active_calibrator"] is None
    named = post(client, solid(RED), calibrator=version)
    assert_problem(named, 409, "the weights are the same, but the card's [input] or [output] table")


def test_activation_takes_effect_between_two_requests(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    client = make_client()
    before = post(client, solid(RED)).json()["mean_confidence"]
    activated = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    after = post(client, solid(RED))

    assert before == pytest.approx(SATURATED, abs=1e-6)
    assert after.headers["x-calibrator"] == activated
    assert after.json()["mean_confidence"] == pytest.approx(SATURATED_AT_2, abs=1e-6)


def test_min_confidence_abstains_exactly_below_it(client):
    body = post(client, HALVES, calibrator="none", min_confidence=0.9).json()
    mask, confidence = arrays(client, HALVES, calibrator="none", min_confidence=0.9)

    assert (mask[:4] == 0).all()
    assert (mask[4:] == 255).all()
    assert ((mask == 255) == (confidence < 0.9)).all()
    assert body["threshold"] == 0.9
    assert body["abstained_fraction"] == 0.5
    assert [entry["id"] for entry in body["classes"]] == [0]
    assert body["classes"][0]["pixels"] == 48
    assert body["classes"][0]["fraction"] == 0.5


def test_min_confidence_applies_to_calibrated_confidence(client):
    # 0.9647 before, 0.7870 after the temperature of 2.
    assert post(client, solid(RED), min_confidence=0.9).json()["abstained_fraction"] == 1.0
    assert post(client, solid(RED), min_confidence=0.7).json()["abstained_fraction"] == 0.0


def test_min_confidence_does_not_change_confidence(client):
    _, plain = arrays(client, HALVES)
    _, asked = arrays(client, HALVES, min_confidence=0.75)

    assert (plain == asked).all()


def test_min_confidence_of_0_abstains_nowhere(client):
    body = post(client, HALVES, min_confidence=0).json()

    assert (body["abstained_fraction"], body["threshold"]) == (0.0, 0.0)


def test_min_confidence_of_1_abstains_everywhere(client):
    body = post(client, HALVES, min_confidence=1, include="mask,rle").json()

    assert (body["abstained_fraction"], body["threshold"]) == (1.0, 1.0)
    assert body["classes"] == body["rle"] == []
    assert (np.asarray(decoded(base64.b64decode(body["mask"]["data"]))) == 255).all()


@pytest.mark.parametrize("calibrator", ["active", "none"])
def test_max_error_without_a_certified_threshold_is_a_conflict(client, calibrator):
    assert_problem(post(client, thirds(), max_error=0.05, calibrator=calibrator), 409, "max_error")


LEVELS = (
    CertifiedThreshold(0.05, 0.78, 0.1, 0.6, 0.01, 40),
    CertifiedThreshold(0.2, 0.3, 0.1, 0.9, 0.12, 40),
)


@pytest.fixture
def certified(make_client: MakeClient, models_dir: Path, artifacts_dir: Path) -> TestClient:
    """Open a service with two certified levels at temperature 2 (saturated pixels: 0.787)."""
    publish_temperature(artifacts_dir, models_dir / "tiny", 2, thresholds=LEVELS)
    return make_client()


@pytest.mark.parametrize(
    ("max_error", "threshold"), [(0.05, 0.78), (0.19, 0.78), (0.2, 0.3), (0.9, 0.3)]
)
def test_max_error_selects_the_largest_certified_level_up_to_it(certified, max_error, threshold):
    body = post(certified, HALVES, max_error=max_error, include="mask").json()
    asked = post(certified, HALVES, min_confidence=threshold, include="mask").json()

    assert body["threshold"] == threshold
    assert body["abstained_fraction"] == asked["abstained_fraction"]
    assert body["mask"] == asked["mask"]


@pytest.mark.parametrize(
    ("threshold", "applies", "header", "detail"),
    [
        (1e9, True, "applies", "score of this image is 1.00, at least 0.5"),
        (1e-9, False, "does-not-apply", "score of this image is 0.00, below 0.5"),
    ],
)
def test_guarantee_applies_to_images_like_those_of_the_fit(
    make_client: MakeClient, models_dir, artifacts_dir, threshold, applies, header, detail
):
    calibrator = Contextual(3)
    calibrator.detector.offset.fill_(1.0)
    calibrator.score.precision.fill_diagonal_(1.0)
    calibrator.score.threshold.fill_(threshold)
    publish_calibrator(artifacts_dir, models_dir / "tiny", calibrator, thresholds=LEVELS)
    client = make_client()
    response = post(client, HALVES, max_error=0.1)
    guarantee = response.json()["calibration"]["guarantee"]

    assert (guarantee["max_error"], guarantee["applies"]) == (0.05, applies)
    assert guarantee["detail"].endswith(detail)
    for kind in ({}, PNG, NPZ):
        assert post(client, HALVES, kind, max_error=0.1).headers["x-guarantee"] == header
    unasked = post(client, HALVES, min_confidence=0.5)
    assert unasked.json()["calibration"]["guarantee"] is None
    assert "x-guarantee" not in unasked.headers


def test_guarantee_is_not_measured_without_a_score(certified):
    response = post(certified, HALVES, max_error=0.2)
    guarantee = response.json()["calibration"]["guarantee"]

    assert (guarantee["max_error"], guarantee["applies"]) == (0.2, None)
    assert "does not measure" in guarantee["detail"]
    assert response.headers["x-guarantee"] == "not-measured"


@pytest.mark.parametrize(("score", "applies"), [(0.5, True), (0.49, False), (None, None)])
def test_guarantee_needs_a_score_of_one_half(score, applies):
    assert guarantee_of(LEVELS[0], score).applies == applies


def test_max_error_below_all_certified_levels_is_a_conflict_that_names_them(certified):
    assert_problem(post(certified, thirds(), max_error=0.04), 409, "max_error=0.04", "0.05, 0.2")


def test_max_error_without_a_calibrator_is_a_conflict_even_where_one_is_active(certified):
    assert_problem(post(certified, thirds(), max_error=0.2, calibrator="none"), 409, "levels: none")


@pytest.mark.parametrize("tta", ["flip", "multiscale"])
def test_max_error_with_augmentation_is_a_conflict(certified, tta):
    assert_problem(post(certified, thirds(), max_error=0.2, tta=tta), 409, "tta=none", tta)


def test_thresholds_are_listed_with_a_calibrator(certified):
    [listed] = certified.get("/calibrators").json()["calibrators"]
    [first, second] = certified.get(f"/calibrators/{listed['id']}").json()["thresholds"]

    assert first == {
        "max_error": 0.05, "threshold": 0.78, "delta": 0.1, "coverage": 0.6, "error": 0.01,
        "images": 40,
    }  # fmt: skip
    assert second["max_error"] == 0.2


def test_both_thresholds_at_once_are_rejected(client):
    assert_problem(
        post(client, thirds(), min_confidence=0.5, max_error=0.05), 422, "at most one of"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_confidence", "-0.1"), ("min_confidence", "1.1"), ("min_confidence", "nan"),
        ("min_confidence", "half"), ("min_confidence", ""), ("max_error", "0"),
        ("max_error", "1"), ("max_error", "nan"), ("tta", "rotate"), ("include", "mask,depth"),
        ("output", "rle"), ("confidence", "0.5"),
    ],
)  # fmt: skip
def test_argument_out_of_range_is_rejected_by_name(client, name, value):
    body = assert_problem(post(client, thirds(), **{name: value}), 422, name)

    assert isinstance(body["errors"], list)
    assert body["errors"][0]["loc"] == ["query", name]


@pytest.mark.parametrize("model", ["other", "../tiny", "tiny/", "TINY", "x" * 500])
def test_unknown_model_is_not_found(client, model):
    assert_problem(post(client, thirds(), model=model), 404, "tiny")


@pytest.mark.parametrize(
    "calibrator",
    [
        "20260101T000000Z-temperature-abcdef",
        "../tiny",
        "../../etc/passwd",
        "/etc",
        ".",
        "\x00",
        "none\n",
        "*",
    ],
)
def test_unknown_calibrator_is_not_found(client, calibrator):
    assert_problem(post(client, thirds(), calibrator=calibrator), 404, "calibrator")


def test_calibrator_of_another_hash_is_a_conflict(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    other = publish_temperature(
        artifacts_dir, models_dir / "tiny", 2, activate=False, sha256="0" * 64
    )

    assert_problem(post(make_client(), thirds(), calibrator=other), 409, "hash")


def test_calibrator_of_another_model_is_a_conflict(
    make_client: MakeClient, models_dir: Path, artifacts_dir: Path
):
    write_onnx_model(models_dir, "wide", num_classes=5)
    other = publish_temperature(artifacts_dir, models_dir / "wide", 2)
    client = make_client()

    assert_problem(post(client, thirds(), model="tiny", calibrator=other), 409, "wide")
    assert post(client, thirds(), model="wide", calibrator=other).status_code == 200


@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_augmentation_changes_nothing_on_a_uniform_image(client, tta):
    mask, confidence = arrays(client, solid(GREEN, 16, 24), tta=tta, calibrator="none")

    assert (mask == 1).all()
    assert confidence == pytest.approx(np.full((16, 24), SATURATED), abs=1e-3)


@pytest.mark.parametrize("tta", ["flip", "multiscale"])
def test_augmentation_keeps_positions(client, tta):
    image = np.repeat(np.repeat(thirds(), 8, axis=0), 8, axis=1)  # [64,96,3]
    mask, _ = arrays(client, image, tta=tta)
    expected = np.repeat(np.repeat(THIRDS_MASK, 8, axis=0), 8, axis=1)

    assert (mask == expected).mean() > 0.98


def test_two_models_without_default_require_a_name(make_client: MakeClient, models_dir: Path):
    write_onnx_model(models_dir, "wide", num_classes=5)
    client = make_client()

    assert_problem(post(client, thirds()), 404, "tiny", "wide")
    assert post(client, thirds(), model="wide").headers["x-model"] == "wide"


def test_default_model_is_used_without_a_name(make_client: MakeClient, models_dir: Path):
    write_onnx_model(models_dir, "wide", num_classes=5)
    client = make_client(default_model="wide")

    assert post(client, thirds()).headers["x-model"] == "wide"
    assert post(client, thirds(), model="tiny").headers["x-model"] == "tiny"


def test_many_classes_get_a_sixteen_bit_mask(make_client: MakeClient, models_dir: Path):
    write_onnx_model(models_dir, "many", num_classes=300)
    client = make_client(default_model="many")
    mask, _ = arrays(client, thirds())
    abstained = decoded(post(client, thirds(), PNG, min_confidence=1).content)

    assert mask.dtype == np.uint16
    assert (mask == THIRDS_MASK).all()
    assert abstained.mode == "I;16"
    assert (np.asarray(abstained) == 65535).all()
