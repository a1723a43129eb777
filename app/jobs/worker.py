"""Run one fit in a separate process: `python -m app.jobs.worker <job folder>`.

Reads the settings as one line of JSON from standard input, writes progress and errors as lines of
JSON to standard output, and `report.json` and `result.json` to the folder. Exits when standard
input closes, as it does when the server dies.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from app.datasets.uploads import has_images, open_upload
from app.errors import ConflictError, SegcalError
from app.inference.model_card import ModelFolder, read_model_folder
from app.inference.predictor import open_predictor
from app.jobs.store import REPORT, RESULT, UPLOAD, FitRequest, read_request
from app.recalibration import PUBLISHING, calibrate
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import storage, write_json

log = logging.getLogger(__name__)

NICENESS = 10
PROGRESS_INTERVAL_S = 0.2
LOGITS_FRACTION = 0.6  # of the progress, where the model has to run on images first


class Progress:
    """Writes progress as lines of JSON, at most one per stage and `PROGRESS_INTERVAL_S`.

    `start` is the fraction at which the fit begins.
    """

    def __init__(self, output: IO[str], start: float) -> None:
        self._output, self._start = output, start
        self._stage, self._written = "", 0.0

    def logits(self, stage: str, fraction: float) -> None:
        """Write the progress of running the model."""
        self._write(stage, fraction * self._start)

    def fit(self, stage: str, fraction: float) -> None:
        """Write the progress of the fit; SIGTERM is ignored once it is publishing."""
        if stage == PUBLISHING:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._write(stage, self._start + fraction * (1 - self._start))

    def _write(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._written < PROGRESS_INTERVAL_S:
            return
        self._stage, self._written = stage, now
        self.send({"stage": stage, "progress": min(fraction, 1.0)})

    def send(self, message: dict[str, object]) -> None:
        """Write one message."""
        self._output.write(json.dumps(message) + "\n")
        self._output.flush()


def main() -> int:
    """Run the fit of the folder named on the command line; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.nice(NICENESS)
    folder = Path(sys.argv[1])
    output = private_output()
    settings = load_settings(**json.loads(read_line(0)))
    threading.Thread(target=exit_with_parent, daemon=True).start()
    progress = Progress(output, LOGITS_FRACTION if has_images(folder / UPLOAD) else 0.0)
    try:
        run(folder, settings, progress)
    except SegcalError as error:
        progress.send({"error": str(error)})
        return 1
    except Exception as error:
        log.exception("the fit crashed")
        progress.send(
            {"error": f"expected the fit to finish, got an internal error: {type(error).__name__}"}
        )
        return 1
    return 0


def run(folder: Path, settings: Settings, progress: Progress) -> None:
    """Fit, publish, activate if better, and write the result to the folder."""
    torch.set_num_threads(settings.fit_threads)
    tempfile.tempdir = str(folder / UPLOAD)  # temporary files are deleted with the upload
    request = read_request(folder)
    model = read_model_folder(settings.models_dir / request.model)
    check_model(model, request)
    data = open_upload(
        folder / UPLOAD,
        model.num_classes,
        request.ignore_index,
        settings.max_pixels,
        lambda: open_predictor(model, settings.device, settings.fit_threads),
        progress.logits,
    )
    published = calibrate(
        model,
        data,
        ArtifactStore(settings.artifacts_dir),
        request,
        progress.fit,
        by=f"job {folder.name}",
    )
    result = {"calibrator": published.manifest.id, "activated": published.activated}
    with storage("the result of a job"):
        write_json(folder / REPORT, published.report)
        write_json(folder / RESULT, result)


def check_model(model: ModelFolder, request: FitRequest) -> None:
    """Raise ConflictError where the model's file or card was changed after the request."""
    if model.sha256 != request.model_sha256:
        raise ConflictError(
            f"expected the model with hash {request.model_sha256[:12]}, "
            f"got {model.sha256[:12]}: its file or card was changed"
        )


def private_output() -> IO[str]:
    """Return the output pipe for messages; redirect standard output to the log."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def read_line(descriptor: int) -> bytes:
    """Read one line without a buffer, whose lock a thread would hold while the process exits."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            break
        line += piece
    return line


def exit_with_parent(leave: Callable[[int], None] = os._exit) -> None:
    """Exit at once when the server's end of the input pipe closes."""
    while os.read(0, 4096):
        pass
    leave(1)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # unloading torch can take longer than the fit
