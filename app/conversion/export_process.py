"""Run exports for the server, each in a child process: tracing takes much memory and many seconds.

torch's exporter also changes settings of its whole process while it runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path

from app.conversion.export_worker import ERROR_FILE, ExportRequest
from app.errors import BusyError, ConflictError
from app.inference.model_card import ModelFolder
from app.settings import Settings

LIMIT_S = 600.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Exporter:
    """Export models one at a time; safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free = threading.Lock()

    def export(self, folder: ModelFolder, calibrator: str) -> bytes:
        """Return the ONNX file of a model with a calibrator, by id or "none".

        Raises BusyError while another export runs, and ConflictError where it is refused, fails or
        takes more than ten minutes.
        """
        if not self._free.acquire(blocking=False):
            raise BusyError("expected one export at a time, got another one while it runs")
        try:
            with tempfile.TemporaryDirectory(prefix="segcal-export-") as scratch:
                target = Path(scratch) / "model.onnx"
                self._run(self._request(folder, calibrator, target))
                if target.exists():
                    return target.read_bytes()
                raise ConflictError(read_error(target.with_name(ERROR_FILE)))
        finally:
            self._free.release()

    def _request(self, folder: ModelFolder, calibrator: str, target: Path) -> ExportRequest:
        return ExportRequest(
            str(folder.path.parent),
            str(self._settings.artifacts_dir),
            calibrator,
            str(target),
            self._settings.fit_threads,
        )

    def _run(self, request: ExportRequest) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "app.conversion.export_worker"],
            stdin=subprocess.PIPE,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(request.threads)),
            process_group=0,
        )
        assert child.stdin is not None  # noqa: S101 - opened as a pipe
        with child, child.stdin as requests:
            try:
                requests.write(json.dumps(asdict(request)).encode() + b"\n")
                requests.flush()
                child.wait(LIMIT_S)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                child.kill()


def read_error(path: Path) -> str:
    """Return the reason that the child wrote, or that it ended without one."""
    if not path.exists():
        return f"expected an export within {LIMIT_S:g} s, got a process that ended without one"
    detail: str = json.loads(path.read_text("utf-8"))["detail"]
    return detail
