"""Alert rules and dashboard: promtool accepts them, and each metric is one of the service."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "segcal.json"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# Of Prometheus itself, and of its client; the rest of `process_` is not used.
OTHERS = {"up", "process_resident_memory_bytes"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def documented() -> set[str]:
    """Return the names of all samples of the documented metrics."""
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    rows = re.findall(r"^\| `(segcal_\w+)` \| (\w+) \|", text, flags=re.MULTILINE)
    return {name + suffix for name, kind in rows for suffix in SUFFIXES[kind]}


def rule_expressions() -> list[str]:
    """Return the expressions of the alert rules."""
    text = (MONITORING / "alerts.yml").read_text("utf-8")
    found = re.findall(r"^ +expr: (>-\n(?: {10}.*\n)+|.*\n)", text, flags=re.MULTILINE)
    assert len(found) == text.count("- alert:")
    return found


def dashboard_expressions() -> list[str]:
    """Return the queries of the dashboard."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def metrics_of(expression: str) -> set[str]:
    """Return the names of metrics in an expression."""
    words = re.findall(r"\b(?:segcal|process)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression))
    return set(words)


@pytest.mark.parametrize("expression", [*rule_expressions(), *dashboard_expressions()])
def test_each_metric_is_one_of_the_service(expression):
    names = metrics_of(expression)
    assert names
    assert names - documented() - OTHERS == set()


def test_dashboard_shows_every_metric():
    shown = {name for expression in dashboard_expressions() for name in metrics_of(expression)}
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    names = re.findall(r"^\| `(segcal_\w+)` \|", text, flags=re.MULTILINE)
    assert [name for name in names if not any(each.startswith(name) for each in shown)] == []


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--syntax-only", "prometheus.yml"],  # the token's file is compose's
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_accepts(arguments):
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested():
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text("utf-8"))
    tested = re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text("utf-8"))
    assert set(alerts) == set(tested)
