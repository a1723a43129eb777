"""Settings are read from the environment; the error for an invalid one names its variable."""

import os
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import SettingsError
from app.jobs.process import SECRETS
from app.main import create_app
from app.settings import Settings, available_cores, available_memory, load_settings
from tests.factories.models import write_onnx_model


def test_defaults_serve_the_bundled_model_to_everyone():
    settings = load_settings()

    assert settings.models_dir == Path("models")
    assert settings.artifacts_dir == Path("calibration_artifacts")
    assert settings.default_model is None
    assert settings.api_tokens == ()
    assert settings.threads == available_cores() >= 1
    assert settings.device == "auto"


def test_cores_are_those_of_the_machine_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert available_cores() == os.cpu_count()


CONTROL_GROUPS = {  # by version: the files of a container's limits, and of one without limits
    1: (
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000",
         "memory/memory.limit_in_bytes": "1000000"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000",
         "memory/memory.limit_in_bytes": "9223372036854771712"},
    ),
    2: (
        {"cpu.max": "150000 100000", "memory.max": "1000000"},
        {"cpu.max": "max 100000", "memory.max": "max"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", CONTROL_GROUPS)
def test_limits_of_the_container_are_read(tmp_path: Path, version):
    machine = (len(os.sched_getaffinity(0)), available_memory(tmp_path))
    expected = ((1, 1_000_000), machine)
    for files, limits in zip(CONTROL_GROUPS[version], expected, strict=True):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        assert (available_cores(tmp_path), available_memory(tmp_path)) == limits


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MODELS_DIR", "/srv/models", Path("/srv/models")),
        ("ARTIFACTS_DIR", "/srv/calibrators", Path("/srv/calibrators")),
        ("ARTIFACTS_DIR", "s3://bucket/a/prefix", "s3://bucket/a/prefix"),
        ("ARTIFACTS_DIR", "az://container", "az://container"),
        ("STATE_DIR", "/var/lib/segcal", Path("/var/lib/segcal")),
        ("RESULTS_DIR", "/srv/results", Path("/srv/results")),
        ("RESULTS_DIR", "gs://bucket/results", "gs://bucket/results"),
        ("DEFAULT_MODEL", "street", "street"),
        ("API_TOKENS", "alpha", ("alpha",)),
        ("API_TOKENS", " alpha ,,beta, ", ("alpha", "beta")),
        ("MAX_UPLOAD_BYTES", "1000", 1000),
        ("MAX_CALIBRATION_BYTES", "1000", 1000),
        ("MAX_PIXELS", "1000", 1000),
        ("METRICS_TOKEN", "for-metrics", "for-metrics"),
        ("CORS_ORIGINS", "https://a.example, *", ("https://a.example", "*")),
        ("RETRY_BYTES", "0", 0),
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
        ("CORS_ORIGINS", "a.example"), ("CORS_ORIGINS", "https://a.example/path"),
        ("CORS_ORIGINS", ","), ("RETRY_BYTES", "-1"),
        ("ARTIFACTS_DIR", "ftp://x/y"), ("ARTIFACTS_DIR", "s3://"), ("ARTIFACTS_DIR", "s3://key@b"),
        ("ARTIFACTS_DIR", "file:///srv"), ("MODELS_DIR", "s3://x"), ("STATE_DIR", "s3://x"),
        ("RESULTS_DIR", "ftp://x/y"), ("RESULT_BYTES", "-1"), ("THREADS", "0"),
        ("DEVICE", "gpu"), ("DEVICE", "CUDA:0"),
    ],
)  # fmt: skip
def test_invalid_value_is_rejected_by_name_and_value(monkeypatch, name, value):
    monkeypatch.setenv(f"SEGCAL_{name}", value)

    with pytest.raises(SettingsError, match=rf"^SEGCAL_{name}: .*, got '{value}'$"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "close"),
    [("SEGCAL_MAX_PIXEL", "SEGCAL_MAX_PIXELS"), ("SEGCAL_API_TOKEN", "SEGCAL_API_TOKENS"),
     ("segcal_thread", "SEGCAL_THREADS"), ("SEGCAL_XYZZY", ""), ("SEGCAL_PORT", "")],
)  # fmt: skip
def test_unknown_variable_stops_the_start(monkeypatch, name, close):
    monkeypatch.setenv(name, "9000")

    with pytest.raises(SettingsError, match=rf"^{name}: expected a setting .*{close}, got no such"):
        load_settings()


def test_variables_of_the_command_line_and_of_kubernetes_are_no_settings(monkeypatch):
    plain = load_settings()
    monkeypatch.setenv("SEGCAL_TOKEN", "of the command line")
    monkeypatch.setenv("SEGCAL_UNKNOWN", "")
    # Of a Service named "segcal" in the same namespace.
    monkeypatch.setenv("SEGCAL_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SEGCAL_SERVICE_PORT_HTTP", "8000")
    monkeypatch.setenv("SEGCAL_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("SEGCAL_PORT_8000_TCP_ADDR", "10.0.0.1")

    assert load_settings() == plain


def test_no_token_is_sent_to_a_fit(monkeypatch):
    assert {name for name in Settings.model_fields if "token" in name} == SECRETS


@pytest.mark.parametrize("name", ["DEFAULT_MODEL", "API_TOKENS", "THREADS", "DEVICE"])
def test_empty_variable_counts_as_unset(monkeypatch, name):
    plain = load_settings()
    monkeypatch.setenv(f"SEGCAL_{name}", "")

    assert load_settings() == plain


@pytest.mark.parametrize(("threads", "expected"), [("1", 1), ("2", 1), ("5", 2)])
def test_fit_takes_half_the_threads(monkeypatch, threads, expected):
    monkeypatch.setenv("SEGCAL_THREADS", threads)

    assert load_settings().fit_threads == expected


def test_state_is_kept_beside_artefacts_in_a_folder_and_else_in_the_user_s_state(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/state")

    assert load_settings(artifacts_dir=Path("/srv/a")).state_dir == Path("/srv/a")
    assert load_settings(artifacts_dir="s3://bucket").state_dir == Path("/state/segcal")


def test_results_are_kept_beside_artefacts_in_a_bucket_and_else_in_memory():
    assert load_settings(artifacts_dir=Path("/srv/a")).results_dir is None
    assert load_settings(artifacts_dir="s3://bucket/a/").results_dir == "s3://bucket/a/.results"
    chosen = load_settings(artifacts_dir="s3://bucket/a", results_dir=Path("/srv/results"))
    assert chosen.results_dir == Path("/srv/results")


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


@pytest.mark.parametrize(
    ("name", "value"), [("ADMIN_TOKEN", "hush"), ("METRICS_TOKEN", "hush"), ("API_TOKENS", ",")]
)
def test_error_for_invalid_token_names_variable_without_value(monkeypatch, name, value):
    monkeypatch.setenv(f"SEGCAL_{name}", value)
    with pytest.raises(SettingsError, match=rf"^SEGCAL_{name}: .*, got a secret$") as refused:
        load_settings()
    assert "hush" not in "".join(traceback.format_exception(refused.value))
