"""Child process of `export_process`: `python -m app.conversion.export_worker`.

Reads one line of JSON (see `ExportRequest`) from standard input, and writes the exported file to
its target, or the error to ERROR_FILE beside it. Exits when standard input closes, as it does when
the server ends.
"""

import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from app.conversion.export_model import export_model
from app.errors import SegcalError
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from app.serving.segmenter import find_calibrator
from app.storage.artifacts import ArtifactStore

ERROR_FILE = "error.json"
NICENESS = 10


@dataclass(frozen=True)
class ExportRequest:
    """Paths as text of a model's folder, the artefacts and the file to write; a calibrator's id."""

    folder: str
    artifacts_dir: str
    calibrator: str
    target: str
    threads: int


def run(request: ExportRequest) -> None:
    """Export one model to a file; raises the errors of `export_model` and `find_calibrator`."""
    folder = read_model_folder(Path(request.folder))
    stored = find_calibrator(ArtifactStore(request.artifacts_dir), folder, request.calibrator)
    exported = export_model(open_predictor(folder, "cpu", request.threads), stored)
    Path(request.target).write_bytes(exported.data)


def main() -> None:
    """Run the request on standard input; exits with 1 where the export is refused."""
    os.nice(NICENESS)
    request = ExportRequest(**json.loads(sys.stdin.readline()))
    threading.Thread(target=exit_with_parent, daemon=True).start()
    try:
        run(request)
    except SegcalError as error:
        file = Path(request.target).with_name(ERROR_FILE)
        file.write_text(json.dumps({"detail": str(error)}), "utf-8")
        sys.exit(1)


def exit_with_parent() -> None:
    """End this process once standard input closes."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
