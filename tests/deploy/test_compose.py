"""`docker-compose.yml` fits the service and the files that it mounts."""

from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings, load_settings

yaml = pytest.importorskip("yaml", reason="expected PyYAML: pip install -e '.[dev]'")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    result: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return result


def test_variables_are_settings(compose):
    variables = set(compose["services"]["segcal"]["environment"]) - {"TMPDIR"}
    assert variables <= {f"SEGCAL_{field.upper()}" for field in Settings.model_fields}


def test_container_is_limited_and_ends_after_the_service(compose):
    service = compose["services"]["segcal"]
    assert service["mem_limit"] == "${SEGCAL_MEMORY:-4g}"
    assert service["cpus"] == "${SEGCAL_CPUS:-0}"
    assert service["pids_limit"] > 0
    assert int(service["stop_grace_period"].removesuffix("s")) > load_settings().shutdown_timeout_s


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_monitoring_is_optional_and_reached_from_this_machine_only(compose, name):
    service = compose["services"][name]
    assert service["profiles"] == ["monitoring"]
    assert [port.partition(":")[0] for port in service["ports"]] == ["127.0.0.1"]
    for volume in service["volumes"]:
        source, _, target = volume.partition(":")
        assert source in compose["volumes"] or ((ROOT / source).exists() and target.endswith(":ro"))


def test_prometheus_sends_the_token_of_the_service_to_the_service(compose):
    (mounted,) = compose["services"]["prometheus"]["configs"]
    text = (ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text("utf-8")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["authorization"] == {"credentials_file": mounted["target"]}
    assert job["static_configs"] == [{"targets": ["segcal:8000"]}]
    # Not empty, which compose does not accept.
    assert compose["configs"][mounted["source"]]["content"] == "${SEGCAL_METRICS_TOKEN:-none}"
