"""Hostile requests to a real server get an error of their own, and nothing of 500 or above.

`FUZZ_EXAMPLES` sets the number of requests of each target. The seeds of `seeds.json` and the
requests of `corpus/`, which found faults before, are repeated each time.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import load_settings
from app.storage.files import locked
from tests.factories.service import open_server
from tests.fuzz.campaign import CORPUS, SETTINGS, Campaign, read_seeds, write_service
from tests.fuzz.probe import fault_of, is_incomplete, send
from tests.fuzz.targets import TARGETS
from tests.fuzz.test_uploads import EXAMPLES


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    folder = tmp_path_factory.mktemp("fuzz")
    write_service(folder)
    own = {name.lower(): value for name, value in SETTINGS.items()}
    settings = load_settings(
        models_dir=folder / "models", artifacts_dir=folder / "artifacts", **own
    )
    with open_server(settings) as url, locked(folder / "artifacts" / ".jobs" / ".fitting"):
        yield Campaign(folder, int(url.rpartition(":")[2]))


@pytest.mark.parametrize("target", [*TARGETS, "damage"])
def test_hostile_requests_get_an_error_of_their_own(campaign: Campaign, target):
    count = EXAMPLES // 10 if target == "damage" else EXAMPLES // 2
    campaign.run(target, [*read_seeds().get(target, ()), *range(count)])
    assert campaign.findings[target].inputs >= count
    assert campaign.findings[target].faults == {}


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.http")), ids=lambda path: path.stem)
def test_request_that_found_a_fault_gets_an_error_of_its_own(campaign: Campaign, path: Path):
    request = path.read_bytes()
    assert fault_of(request, send(campaign.port, request)) is None


@pytest.mark.parametrize(
    ("data", "incomplete"),
    [
        (b"", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", False),
        (b"no request\r\n\r\n", False),
    ],
)
def test_incomplete_requests_are_known(data, incomplete):
    assert is_incomplete(data) == incomplete


def test_faults_are_found(campaign: Campaign, monkeypatch, tmp_path):
    monkeypatch.setattr("tests.fuzz.campaign.CORPUS", tmp_path)
    monkeypatch.setattr("app.api.segment.read_image", None)  # every image is a 500
    findings = campaign.findings["image"]
    known = dict(findings.faults)
    campaign.run("image", [-1])

    assert set(findings.faults) - set(known) == {-1}
    assert findings.faults.pop(-1).startswith("500 ")
    assert [path.name for path in tmp_path.iterdir()] == ["image--1.http"]
