"""The files of `deploy/monitoring` in a real Prometheus, which scrapes a real server process.

Intervals and the rules' `for` are shortened; `tests/test_monitoring.py` tests them at their length.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from app.calibration.methods.contextual import Contextual
from tests.api.test_server import Served, free_port, serving
from tests.factories.jobs import wait_for
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    assert_problem,
    encoded,
    post,
    publish_calibrator,
    wait_until_ready,
)
from tests.factories.validation_data import archive
from tests.test_monitoring import MONITORING, dashboard_expressions

PROMETHEUS = shutil.which("prometheus")
TOKEN = "a token for tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
SETTINGS = {
    "ADMIN_TOKEN": TOKEN,
    "METRICS_TOKEN": "a token for metrics",
    "DRIFT_WINDOW": "8",
    "DRIFT_PATIENCE": "2",
}
IMAGES = 64  # 24 or more are tested, so that drift has a reference

pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="expected prometheus: apt install prometheus"
)


@dataclass
class Monitored:
    """A server process, and a client of the Prometheus that scrapes it."""

    served: Served
    artifacts: Path
    prometheus: httpx2.Client

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer of Prometheus' HTTP API."""
        answer = self.prometheus.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, expression: str) -> list[float]:
        """Return the values of an expression that are numbers, one of each series."""
        series = self.ask("query", query=expression)["result"]
        return [value for each in series if np.isfinite(value := float(each["value"][1]))]

    def rules(self) -> dict[str, dict[str, Any]]:
        """Return the alert rules by name."""
        groups = self.ask("rules", type="alert")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {name for name, rule in self.rules().items() if rule["state"] == "firing"}

    def active(self) -> set[str]:
        """Return the names of the alerts that fire or will do so if nothing changes."""
        return {name for name, rule in self.rules().items() if rule["state"] != "inactive"}


def draw_image(rng: np.random.Generator) -> tuple[bytes, bytes]:
    """Draw an image whose strongest channel mostly is its label, and its label map; PNG."""
    labels = rng.integers(0, 3, (2, 3)).repeat(8, axis=0).repeat(8, axis=1)
    shown = np.where(rng.random(labels.shape) < 0.1, rng.integers(0, 3, labels.shape), labels)
    image = 80 * np.eye(3)[shown] + rng.integers(0, 150, (*labels.shape, 3))
    return encoded(image.astype(np.uint8)), encoded(Image.fromarray(labels.astype(np.uint8)))


def write_configuration(folder: Path, port: int) -> Path:
    """Write the files of Prometheus, for a server on a port of this machine."""
    token = folder / "metrics_token"
    token.write_text(SETTINGS["METRICS_TOKEN"])
    text = (MONITORING / "prometheus.yml").read_text("utf-8")
    for old, new in (
        ("15s", "250ms"),
        ("segcal:8000", f"127.0.0.1:{port}"),
        ("/run/metrics_token", str(token)),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text, "utf-8")
    rules = (MONITORING / "alerts.yml").read_text("utf-8")
    (folder / "alerts.yml").write_text(re.sub(r"for: \d+m", "for: 1s", rules), "utf-8")
    return folder / "prometheus.yml"


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Run both, with requests, a fit and the activation of its calibrator.

    Another model has a calibrator with an in-distribution score, which is 1 as it was not fitted.
    """
    folder = tmp_path_factory.mktemp("monitored")
    write_onnx_model(folder / "models", "tiny", default=True)
    other = write_onnx_model(folder / "models", "other")
    publish_calibrator(folder / "artifacts", other, Contextual.for_warm_up(3))
    with ExitStack() as stack:
        served = stack.enter_context(serving(folder, port=None, **SETTINGS))
        served.first_answer("/healthz")
        wait_until_ready(served.client)
        port = free_port()
        command = [
            str(PROMETHEUS),
            f"--config.file={write_configuration(folder, served.port)}",
            f"--storage.tsdb.path={folder / 'series'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        log = stack.enter_context((folder / "prometheus.log").open("wb"))
        process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        stack.callback(process.kill)
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        monitored = Monitored(served, folder / "artifacts", stack.enter_context(client))
        wait_for(lambda: is_ready(client), "Prometheus to be ready")
        wait_for(lambda: monitored.values("up") == [1], "a scrape of the service")
        use(monitored)
        yield monitored


def is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx2.TransportError:
        return False


def use(monitored: Monitored) -> None:
    """Fit a calibrator, activate it, and segment images like those of the fit."""
    client = monitored.served.client
    rng = np.random.default_rng(0)
    drawn = [draw_image(rng) for _ in range(IMAGES)]
    # No rate sees the increase with which a series begins, so a scrape comes between the images.
    for model in ("tiny", "other"):
        assert post(client, drawn[0][0], model=model, min_confidence=0.6).status_code == 200
    counts = "segcal_image_mean_confidence_count"
    wait_for(lambda: monitored.values(counts) == [1, 1], "a scrape")
    files = {
        "images": archive({f"{i}.png": image for i, (image, _) in enumerate(drawn)}),
        "labels": archive({f"{i}.png": labels for i, (_, labels) in enumerate(drawn)}),
    }
    fields = {"method": "temperature", "activate": "never"}
    accepted = client.post("/calibrate", files=files, data=fields, headers=ADMIN)
    assert accepted.status_code == 202, accepted.text
    job = f"/calibrate/{accepted.json()['id']}"

    def ended() -> bool:
        return client.get(job).json()["state"] not in ("queued", "running")

    wait_for(ended, "the end of the fit")
    version = client.get(job).json()["calibrator"]
    assert version, client.get(job).json()
    activated = client.post(
        f"/calibrators/{version}/activate", json={"reason": "for a test"}, headers=ADMIN
    )
    assert activated.status_code == 200, activated.text
    for image, _ in drawn[:12]:
        for model in ("tiny", "other"):
            assert post(client, image, model=model, min_confidence=0.6).status_code == 200
    assert_problem(post(client, b"no image"), 400)


def test_the_service_is_a_target_that_is_up(monitored: Monitored):
    targets = monitored.ask("targets")["activeTargets"]
    assert [(each["labels"]["job"], each["health"]) for each in targets] == [("segcal", "up")]
    assert_problem(monitored.served.client.get("/metrics"), 401)  # without the token


def test_every_query_of_the_dashboard_returns_a_value(monitored: Monitored):
    missing = list(dashboard_expressions())

    def found() -> bool:
        missing[:] = [each for each in missing if not monitored.values(each)]
        return not missing

    try:
        wait_for(found, "a value of each query")
    except AssertionError:
        pytest.fail("no value of\n" + "\n".join(missing))


def test_no_alert_is_active_on_a_healthy_service(monitored: Monitored):
    evaluated = {rule["health"] for rule in monitored.rules().values()}
    assert len(monitored.rules()) == (MONITORING / "alerts.yml").read_text("utf-8").count("alert:")
    assert evaluated == {"ok"}
    assert monitored.active() == set()


def test_drift_damage_and_the_end_of_the_service_fire_alerts(monitored: Monitored):
    client = monitored.served.client
    unlike = encoded(np.full((16, 24, 3), 255, np.uint8))
    for _ in range(12):
        assert post(client, unlike).status_code == 200
    wait_for(lambda: "SegcalCalibratorStale" in monitored.firing(), "the alert of drift")

    (monitored.artifacts / "tiny" / "active").write_text("nonsense")
    wait_for(lambda: "SegcalCalibratorDamaged" in monitored.firing(), "the alert of damage")

    monitored.served.end()
    wait_for(lambda: "SegcalDown" in monitored.firing(), "the alert of a service that is down")
