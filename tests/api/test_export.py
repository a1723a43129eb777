"""`GET /models/{model}/export`: one ONNX file with its certificate, for the admin alone."""

import json

import numpy as np
import onnxruntime
import pytest

from app.storage.artifacts import ArtifactStore
from tests.conftest import MakeClient
from tests.factories.models import write_card
from tests.factories.service import SATURATED_AT_2, assert_problem, publish_temperature, thirds

ADMIN = "the-admin-token"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


def test_file_predicts_as_the_service(make_client: MakeClient, models_dir, artifacts_dir):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", 2)
    client = make_client(admin_token=ADMIN)
    response = client.get("/models/tiny/export", headers=HEADERS)
    assert response.status_code == 200, response.text
    assert response.headers["content-disposition"] == 'attachment; filename="tiny.onnx"'
    session = onnxruntime.InferenceSession(response.content, providers=["CPUExecutionProvider"])
    labels, confidence = session.run(None, {"image": thirds()})
    assert labels[0, [0, 5, 11]].tolist() == [0, 1, 2]
    assert confidence[0, [0, 5, 11]] == pytest.approx(np.full(3, SATURATED_AT_2), abs=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["segcal.certificate"])["calibrator"] == version
    assert ArtifactStore(artifacts_dir).active_id("tiny") == version


def test_export_needs_the_admin_token(client):
    assert_problem(client.get("/models/tiny/export"), 401, "token")


def test_refusal_is_a_conflict_with_its_reason(make_client: MakeClient, models_dir):
    write_card(models_dir / "tiny", size=[8, 8], resample="area")
    client = make_client(admin_token=ADMIN)
    refused = client.get("/models/tiny/export", headers=HEADERS)
    assert_problem(refused, 409, 'expected resample = "bilinear"', 'got "area"')
    unknown = client.get("/models/none/export", headers=HEADERS)
    assert_problem(unknown, 404, "expected one of the models")
    calibrator = client.get("/models/tiny/export?calibrator=x", headers=HEADERS)
    assert_problem(calibrator, 404, "expected the id of a calibrator of tiny")
