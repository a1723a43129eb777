"""Settings are read from the environment; the error for an invalid one names its variable."""

import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import SettingsError
from app.main import create_app
from app.settings import available_cores, load_settings
from tests.factories.models import write_onnx_model


def test_defaults_serve_the_bundled_model_to_everyone():
    settings = load_settings()

    assert settings.models_dir == Path("models")
    assert settings.artifacts_dir == Path("calibration_artifacts")
    assert settings.default_model is None
    assert settings.api_tokens == ()
    assert settings.threads == available_cores() >= 1
    assert settings.device == "auto"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MODELS_DIR", "/srv/models", Path("/srv/models")),
        ("ARTIFACTS_DIR", "/srv/calibrators", Path("/srv/calibrators")),
        ("DEFAULT_MODEL", "street", "street"),
        ("API_TOKENS", "alpha", ("alpha",)),
        ("API_TOKENS", " alpha ,,beta, ", ("alpha", "beta")),
        ("MAX_UPLOAD_BYTES", "1000", 1000),
        ("MAX_CALIBRATION_BYTES", "1000", 1000),
        ("MAX_PIXELS", "1000", 1000),
        ("JOB_LIMIT", "3", 3),
        ("FIT_THREADS", "3", 3),
        ("QUEUE_LIMIT", "1", 1),
        ("REQUEST_TIMEOUT_S", "0.5", 0.5),
        ("UPLOAD_BUFFER_BYTES", "1000", 1000),
        ("DOWNLOAD_TIMEOUT_S", "0.5", 0.5),
        ("IDLE_TIMEOUT_S", "0.5", 0.5),
        ("SHUTDOWN_TIMEOUT_S", "11", 11),
        ("CONNECTION_LIMIT", "1", 1),
        ("CLIENT_CONNECTION_LIMIT", "1", 1),
        ("MEMORY_BYTES", "1000", 1000),
        ("UPLOAD_TIMEOUT_S", "0.5", 0.5),
        ("RESULT_TTL_S", "0.5", 0.5),
        ("RESULT_BYTES", "0", 0),
        ("THREADS", "3", 3),
        ("DEVICE", "cpu", "cpu"),
    ],
)
def test_variable_sets_its_setting(monkeypatch, name, value, expected):
    monkeypatch.setenv(f"SEGCAL_{name}", value)

    assert getattr(load_settings(), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_UPLOAD_BYTES", "0"), ("MAX_UPLOAD_BYTES", "32MB"), ("MAX_PIXELS", "-1"),
        ("MAX_PIXELS", "1.5"), ("QUEUE_LIMIT", "many"), ("QUEUE_LIMIT", "0"),
        ("UPLOAD_TIMEOUT_S", "0"), ("REQUEST_TIMEOUT_S", "0"), ("DOWNLOAD_TIMEOUT_S", "0"),
        ("IDLE_TIMEOUT_S", "0"), ("SHUTDOWN_TIMEOUT_S", "10"), ("CONNECTION_LIMIT", "0"),
        ("CLIENT_CONNECTION_LIMIT", "0"), ("UPLOAD_BUFFER_BYTES", "0"), ("MEMORY_BYTES", "0"),
        ("RESULT_TTL_S", "-1"), ("RESULT_TTL_S", "nan"), ("RESULT_TTL_S", "10m"),
        ("RESULT_BYTES", "-1"), ("THREADS", "0"), ("DEVICE", "gpu"), ("DEVICE", "CUDA:0"),
    ],
)  # fmt: skip
def test_invalid_value_is_rejected_by_name_and_value(monkeypatch, name, value):
    monkeypatch.setenv(f"SEGCAL_{name}", value)

    with pytest.raises(SettingsError, match=rf"^SEGCAL_{name}: .*, got '{value}'$"):
        load_settings()


@pytest.mark.parametrize("name", ["DEFAULT_MODEL", "API_TOKENS", "THREADS", "DEVICE"])
def test_empty_variable_counts_as_unset(monkeypatch, name):
    plain = load_settings()
    monkeypatch.setenv(f"SEGCAL_{name}", "")

    assert load_settings() == plain


@pytest.mark.parametrize(("threads", "expected"), [("1", 1), ("2", 1), ("5", 2)])
def test_fit_takes_half_the_threads(monkeypatch, threads, expected):
    monkeypatch.setenv("SEGCAL_THREADS", threads)

    assert load_settings().fit_threads == expected


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().threads = 8


def test_folder_without_models_stops_the_start(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SettingsError, match=f"SEGCAL_MODELS_DIR: .*{folder}"):
            create_app(load_settings(models_dir=folder))


def test_missing_default_model_stops_the_start(tmp_path: Path):
    write_onnx_model(tmp_path, "tiny")

    with pytest.raises(SettingsError, match=r"SEGCAL_DEFAULT_MODEL: .*\['tiny'\], got 'street'"):
        create_app(load_settings(models_dir=tmp_path, default_model="street"))


@pytest.mark.parametrize(("name", "value"), [("ADMIN_TOKEN", "hush"), ("API_TOKENS", ",")])
def test_error_for_invalid_token_names_variable_without_value(monkeypatch, name, value):
    monkeypatch.setenv(f"SEGCAL_{name}", value)
    with pytest.raises(SettingsError, match=rf"^SEGCAL_{name}: .*, got a secret$") as refused:
        load_settings()
    assert "hush" not in "".join(traceback.format_exception(refused.value))
