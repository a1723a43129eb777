"""Fixtures of the fault tests: the folder of a service, and a runner of tasks that are killed."""

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.factories.service import publish_temperature
from tests.faults.steps import End, Task, as_line

log = logging.getLogger(__name__)
RunTask = Callable[[Task], End]


@pytest.fixture
def folder(models_dir: Path, artifacts_dir: Path) -> Path:
    """Return a folder with `models/tiny` and an active calibrator of temperature 2."""
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    return models_dir.parent


@pytest.fixture(scope="session")
def run_task() -> Iterator[RunTask]:
    """Return a function that runs a task in a child process; it returns how that ended."""
    command = [sys.executable, "-m", "tests.faults.steps"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        tasks, ends = process.stdin, process.stdout
        assert tasks
        assert ends

        counted: Counter[str] = Counter()

        def run(task: Task) -> End:
            tasks.write(as_line(task))
            tasks.flush()
            end = ends.readline().strip()
            assert end in ("killed", "finished", "disk full"), f"the task failed: {task}"
            counted[end] += 1
            return end  # type: ignore[return-value]

        yield run
        tasks.close()
    assert process.returncode == 0
    log.info("tasks by their end: %s", dict(counted))
