"""`GET /metrics`: what the service counts and measures, as the table of the documents lists it."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.inference.model_card import read_model_folder
from tests.conftest import MakeClient
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    RED,
    SATURATED,
    assert_problem,
    post,
    publish_temperature,
    solid,
    thirds,
)

ROOT = Path(__file__).parents[2]
Labels = dict[str, str]


def families(client: TestClient) -> dict[str, str]:
    """Return the type of each metric by name."""
    text = client.get("/metrics").text
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def value(client: TestClient, name: str, **labels: str) -> float | None:
    """Return the value of one sample; None where there is none."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def test_documented_metrics_are_those_of_the_service(client: TestClient):
    post(client, thirds(), max_error=0.5)  # a rejection
    post(client, thirds(), min_confidence=0.5)
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    documented = dict(re.findall(r"^\| `(segcal_\w+)` \| (\w+) \|", text, flags=re.MULTILINE))
    found = {
        name: kind
        for name, kind in families(client).items()
        if name.startswith("segcal_") and not name.endswith("_created")
    }
    assert documented == found


def test_memory_and_processor_of_the_process_are_measured(client: TestClient):
    resident = value(client, "process_resident_memory_bytes")
    assert resident
    assert resident > 10e6
    assert (value(client, "segcal_memory_limit_bytes") or 0) > 0


def test_release_models_and_calibrators_are_named(make_client, models_dir, artifacts_dir):
    other = write_onnx_model(models_dir, "other")
    (models_dir / "bad").mkdir()
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    client = make_client(default_model="tiny")

    def info(name: str, **labels: str) -> float | None:
        return value(client, name, **labels)

    assert info("segcal_build_info", version=__version__) == 1
    sha256 = read_model_folder(other).sha256
    assert info("segcal_model_info", model="other", sha256=sha256, device="cpu") == 1
    assert info("segcal_model_refused", model="bad") == 1
    names = {"calibrator": version, "method": "temperature"}
    assert info("segcal_calibrator_info", model="tiny", **names) == 1
    assert info("segcal_calibrator_ece", model="tiny") == 0.125
    assert info("segcal_calibrator_damaged", model="tiny") == 0
    assert info("segcal_ready") == 1

    (artifacts_dir / "tiny" / "active").write_text("nonsense")
    assert info("segcal_calibrator_damaged", model="tiny") == 1


def test_segmentations_are_measured(make_client: MakeClient):
    client = make_client()
    for threshold in (0.0, 0.99):  # above the confidence of all pixels
        post(client, solid(RED), min_confidence=threshold)
    post(client, solid(RED))

    assert value(client, "segcal_image_mean_confidence_count", model="tiny") == 3
    total = value(client, "segcal_image_mean_confidence_sum", model="tiny")
    assert total == pytest.approx(3 * SATURATED, abs=0.01)
    assert value(client, "segcal_image_abstained_fraction_count", model="tiny") == 2
    assert value(client, "segcal_image_abstained_fraction_sum", model="tiny") == 1.0
    for stage in ("decode", "preprocess", "inference", "calibration", "encode", "total"):
        assert value(client, "segcal_stage_seconds_count", stage=stage) == 3
    assert (value(client, "segcal_results_bytes") or 0) > 3 * 8 * 12
    assert value(client, "segcal_uploads_bytes") == 0


def test_rejections_are_counted_by_status_and_error(make_client: MakeClient):
    client = make_client(max_pixels=50)
    assert_problem(post(client, thirds()), 413)
    assert_problem(post(client, b"no image"), 400)
    assert_problem(post(client, thirds(), tta="none of these"), 422)
    assert_problem(client.get("/nothing"), 404)

    name = "segcal_rejected_requests_total"
    assert value(client, name, status="413", error="TooLargeError") == 1
    assert value(client, name, status="400", error="UndecodableError") == 1
    assert value(client, name, status="422", error="RequestValidationError") == 1
    assert value(client, name, status="404", error="HTTPException") == 1


def test_jobs_on_record_are_counted_by_state(client: TestClient):
    states = ("queued", "running", "succeeded", "failed", "cancelled", "interrupted")
    assert [value(client, "segcal_jobs", state=state) for state in states] == [0] * 6


def test_full_queue_is_measured(make_client: MakeClient):
    assert value(make_client(queue_limit=7), "segcal_queue_limit") == 7
