"""Who activated what, when and why: a file of JSON lines that is only ever added to."""

import json
import os
from pathlib import Path
from typing import IO

TAIL_BYTES = 64 << 10  # in which the last line is looked for; a line takes some 300 bytes


class History:
    """One model's activations; whoever writes holds the model's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, at: str, calibrator: str, by: str, reason: str) -> int:
        """Add a line that is on the disk when this returns; gives the length before it.

        What a crash or a full disk has left of an earlier line stays, on a line of its own.
        """
        line = json.dumps({"at": at, "calibrator": calibrator, "by": by, "reason": reason})
        # Without a buffer, which closing would write once more after a failure.
        with self._path.open("a+b", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            try:
                data = _line_after(file, line)
                while data:  # a disk that fills up takes a part
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), length)
                raise
        return length

    def withdraw(self, length: int) -> None:
        """Take back the last line, whose activation failed; `length` is as `append` gave it."""
        os.truncate(self._path, length)

    def last(self) -> str | None:
        """Give the calibrator of the last whole line, None where there is none."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return None
        for line in reversed(lines):
            try:
                return str(json.loads(line)["calibrator"])
            except (ValueError, TypeError, KeyError):  # torn by a crash
                continue
        return None


def _line_after(file: IO[bytes], text: str) -> bytes:
    """Make a line to append; where a crash has torn the last one, it starts on a new one."""
    if file.seek(0, os.SEEK_END) == 0:
        return f"{text}\n".encode()
    file.seek(-1, os.SEEK_END)
    return (text if file.read(1) == b"\n" else f"\n{text}").encode() + b"\n"
