"""The campaign in its short form, and its check of stale answers on a history by hand."""

import math
from pathlib import Path

import pytest

from tests.deploy.test_haproxy import needs_haproxy
from tests.fleet.campaign import Plan, run_campaign
from tests.fleet.history import Answer, Times, largest_staleness

HISTORY = [
    {"calibrator": version, "reason": reason, "by": "admin", "at": f"1970-01-01T00:00:{at:02}Z"}
    for version, reason, at in (("a", "first", 10), ("b", "killed", 20), ("a", "last", 30))
]
TIMES = {"first": Times(10.0, 10.5), "last": Times(30.0, 30.5)}


@pytest.mark.parametrize(
    ("sent", "version", "staleness"),
    [
        (15.0, "a", 15.0 - 30.5),  # it may be active until the next change that is answered
        (25.0, "a", 25.0 - 30.5),
        (25.0, "b", 25.0 - 30.5),
        (31.0, "b", 0.5),
        (31.0, "a", -math.inf),
        (15.0, "b", math.inf),  # of the future
        (15.0, "c", math.inf),
        (9.0, "a", math.inf),
    ],
)
def test_staleness_is_the_time_since_the_next_change_was_answered(sent, version, staleness):
    answer = Answer(sent, sent + 0.1, version)
    assert largest_staleness([answer], HISTORY, TIMES) == staleness


def test_staleness_of_answers_is_the_largest():
    answers = [Answer(31.0, 31.1, "b"), Answer(33.0, 33.1, "b"), Answer(33.0, 33.1, None)]
    assert largest_staleness(answers, HISTORY, TIMES) == 2.5


@needs_haproxy
def test_no_request_fails_and_none_is_stale_while_a_replica_is_killed(tmp_path: Path):
    pytest.importorskip("moto", reason="expected the packages of `make fleet`")
    pytest.importorskip("obstore")

    plan = Plan(200, 2, kills=1, fits=1, pause_s=0.05, activation_s=1, kill_s=3, fitter_kills=0)
    findings = run_campaign(tmp_path, plan)

    assert findings.faults == []
    assert findings.requests >= 200
    assert findings.replicas_killed >= 1
    assert findings.activations["200"] >= 1
    assert set(findings.jobs) == {"succeeded"}
