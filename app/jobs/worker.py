"""One fit in a process of its own: `python -m app.jobs.worker <job folder>`.

Reads the settings as a line of JSON on its input, writes progress and a failure's sentence as
lines of JSON on its output, and leaves `report.json` and `result.json` in the folder. It ends when
its input closes, which is how it notices that the server has died.
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

from app.calibration.base import FitContext
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
EVERY_S = 0.2
LOGITS_FRACTION = 0.6  # of the time, where the model has to run over images first


class Progress:
    """Writes lines of progress, a few in a second."""

    def __init__(self, output: IO[str], start: float) -> None:
        self._output, self._start = output, start
        self._stage, self._written = "", 0.0

    def logits(self, stage: str, fraction: float) -> None:
        """Take the progress of running the model."""
        self._tell(stage, fraction * self._start)

    def fit(self, stage: str, fraction: float) -> None:
        """Take the progress of the fit; once it is publishing, it is carried through."""
        if stage == PUBLISHING:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._tell(stage, self._start + fraction * (1 - self._start))

    def _tell(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._written < EVERY_S:
            return
        self._stage, self._written = stage, now
        self.send({"stage": stage, "progress": min(fraction, 1.0)})

    def send(self, message: dict[str, object]) -> None:
        """Write one line."""
        self._output.write(json.dumps(message) + "\n")
        self._output.flush()


def main() -> int:
    """Run the fit of the folder that is named on the command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.nice(NICENESS)
    folder = Path(sys.argv[1])
    output = private_output()
    settings = load_settings(**json.loads(read_line(0)))
    threading.Thread(target=end_with_parent, daemon=True).start()
    progress = Progress(output, LOGITS_FRACTION if has_images(folder / UPLOAD) else 0.0)
    try:
        run(folder, settings, progress)
    except SegcalError as error:
        progress.send({"error": str(error)})
        return 1
    except Exception as error:
        log.exception("the fit crashed")
        progress.send(
            {"error": f"expected the fit to finish, got a fault of ours: {type(error).__name__}"}
        )
        return 1
    return 0


def run(folder: Path, settings: Settings, progress: Progress) -> None:
    """Fit, publish, perhaps activate, and leave the result in the folder."""
    torch.set_num_threads(settings.fit_threads)
    tempfile.tempdir = str(folder / UPLOAD)  # so that what is spooled goes with the upload
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
        augmentation=request.augmentation,
    )
    done = calibrate(
        model,
        data,
        ArtifactStore(settings.artifacts_dir),
        FitContext(request.seed, progress.fit),
        request.method,
        request.activate,
        request.note,
        by=f"job {folder.name}",
        allow_label_changes=request.allow_label_changes,
    )
    with storage("what came of the job"):
        write_json(folder / REPORT, done.report)
        write_json(folder / RESULT, {"calibrator": done.manifest.id, "activated": done.activated})


def check_model(model: ModelFolder, request: FitRequest) -> None:
    """Refuse to fit for a model whose file was replaced after the request."""
    if model.sha256 != request.model_sha256:
        raise ConflictError(
            f"expected the model with hash {request.model_sha256[:12]}, "
            f"got {model.sha256[:12]}: its file was replaced"
        )


def private_output() -> IO[str]:
    """Keep the output pipe for our lines; whatever else prints goes to the log."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def read_line(descriptor: int) -> bytes:
    """Read one line without a buffer, which a thread would hold while the process ends."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            break
        line += piece
    return line


def end_with_parent(leave: Callable[[int], None] = os._exit) -> None:
    """Wait for the server's end of the pipe to close, then end at once."""
    while os.read(0, 4096):
        pass
    leave(1)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # taking torch apart can last longer than the fit, and nothing is left to do
