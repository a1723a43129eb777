"""What the tests of faults share: a folder of a service, and a process whose children die."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.factories.service import publish_temperature
from tests.faults.steps import End, Order, as_line

JobRunner = Callable[[Order], End]


@pytest.fixture
def folder(models_dir: Path, artifacts_dir: Path) -> Path:
    """`models/tiny`, and its calibrator of temperature 2, active."""
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    return models_dir.parent


@pytest.fixture(scope="session")
def attempt() -> Iterator[JobRunner]:
    """Does a piece of work in a process that dies when it is told to; see `steps`."""
    command = [sys.executable, "-m", "tests.faults.steps"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        given, said = process.stdin, process.stdout
        assert given
        assert said

        def order(order: Order) -> End:
            given.write(as_line(order))
            given.flush()
            answer = said.readline().strip()
            assert answer in ("killed", "finished", "no room"), f"the work failed: {order}"
            return answer  # type: ignore[return-value]

        yield order
        given.close()
    assert process.returncode == 0
