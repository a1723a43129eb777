"""Process trees: started, measured and ended as one, from what Linux tells in /proc."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SAMPLE_S = 1.0  # a look costs 20 ms of a core
GRACE_S = 20.0


def tree(root: int) -> list[int]:
    """List a process, all its descendants, and what else lives in its session, orphans that is."""
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    todo = [root]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # it ended just now
            continue
        _state, parent, _group, session = stat.rpartition(")")[2].split()[:4]
        children.setdefault(int(parent), []).append(int(entry.name))
        if int(session) == root:
            todo.append(int(entry.name))
    while todo:
        process = todo.pop()
        if process not in found:
            found.add(process)
            todo += children.get(process, [])
    return sorted(found)


def alive(process: int) -> bool:
    """Tell whether a process still runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(processes: Sequence[int]) -> int:
    """Sum the memory of processes, each page that several of them share counted once (PSS)."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


class PeakMemory:
    """Watches a process tree; `peak` is the largest sum seen, in bytes."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def __enter__(self) -> "PeakMemory":
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, resident_bytes(tree(self._root)))
            if self._ended.wait(SAMPLE_S):
                return


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside us, its output in a file, and end its whole tree afterwards."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_tree(process)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ask a tree to end; kill what is left of it after a while."""
    members = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        process.poll()
        if not any(alive(member) for member in members):
            break
        time.sleep(0.05)
    for member in members:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
