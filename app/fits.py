"""`segcal calibrate`: the same fit on this machine, or on a running service."""

import json
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from app.artifacts import ArtifactStore
from app.calibration.base import FitContext
from app.calibration.validation import ValidationSet
from app.connection import Connection
from app.errors import InputError
from app.inference.card import ModelFolder
from app.inference.predictor import open_predictor
from app.labelled import ENDINGS, SpooledLogits, find_pairs
from app.picture_uploads import DRIVES, Limits, picture_drives
from app.recalibration import Activate, calibrate, candidates, require_inputs
from app.settings import Settings
from app.uploads import check, open_upload, unpack

OnProgress = Callable[[str, float], None]

CHUNK = 1 << 20
WAITING = ("queued", "running")


@dataclass(frozen=True)
class Wanted:
    """A fit as it was asked for; `paths` by the contract's field: files, or folders of pictures."""

    paths: dict[str, Path]
    method: str
    activate: Activate
    allow_label_changes: bool
    weather: bool
    ignore_index: int | None
    seed: int
    note: str


class Fitted(NamedTuple):
    """What came of a fit; the report says whether it was activated and why."""

    calibrator: str
    report: dict[str, Any]


def fit_here(
    wanted: Wanted, folder: ModelFolder, settings: Settings, progress: OnProgress
) -> Fitted:
    """Fit on this machine, with the models and calibrators of its folders."""
    candidates(wanted.method, wanted.allow_label_changes)  # refuses before anything is read
    with validation_set(wanted, folder, settings, progress) as data:
        done = calibrate(
            folder,
            data,
            ArtifactStore(settings.artifacts_dir),
            FitContext(wanted.seed, progress),
            wanted.method,
            wanted.activate,
            wanted.note,
            allow_label_changes=wanted.allow_label_changes,
        )
    return Fitted(done.manifest.id, done.report)


@contextmanager
def validation_set(
    wanted: Wanted, folder: ModelFolder, settings: Settings, progress: OnProgress
) -> Iterator[ValidationSet]:
    """Open what is to be fitted on."""
    void = folder.card.output.ignore_index if wanted.ignore_index is None else wanted.ignore_index
    if "images" in wanted.paths:
        pairs = find_pairs(wanted.paths["images"], wanted.paths["labels"])
        predictor = open_predictor(folder, settings.device, settings.threads)
        drives = picture_drives(wanted.paths.get(DRIVES), len(pairs))
        yield SpooledLogits(
            predictor, pairs, void, settings.max_pixels, progress, drives, weather=wanted.weather
        )
        return
    limits = Limits(settings.max_calibration_bytes, settings.max_upload_bytes, settings.max_pixels)
    with tempfile.TemporaryDirectory(prefix="segcal-logits-") as name:
        scratch = Path(name)
        for field, path in wanted.paths.items():
            (scratch / field).symlink_to(path.resolve())
        unpack(scratch, limits)
        contents = check(scratch, folder.num_classes, void, limits)
        require_inputs(wanted.method, weather=wanted.weather, maps=contents.maps)
        yield open_upload(
            scratch,
            folder.num_classes,
            void,
            settings.max_pixels,
            lambda: open_predictor(folder, settings.device, settings.threads),
            progress,
        )


class Service:
    """A running service that fits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fit(self, wanted: Wanted, model: str | None, progress: OnProgress) -> Fitted:
        """Upload, follow the job to its end, and give what came of it."""
        texts = {
            "method": wanted.method,
            "activate": wanted.activate,
            "allow_label_changes": str(wanted.allow_label_changes).lower(),
            "weather": str(wanted.weather).lower(),
            "seed": str(wanted.seed),
            "note": wanted.note,
        }
        if model is not None:
            texts["model"] = model
        void = wanted.ignore_index
        if void is None:  # as a fit on this machine would take it
            void = self._connection.model(model)["ignore_index"]
        texts["ignore_index"] = str(void)
        with ExitStack() as stack:
            files = {
                field: stack.enter_context(zipped(path)) if path.is_dir() else path
                for field, path in wanted.paths.items()
            }
            job = self._upload(Form(texts, files), progress)
        while job["state"] in WAITING:
            job = self._follow(job["id"], progress)
        if job["state"] != "succeeded":
            raise InputError(job["error"] or f"expected the fit to finish, got it {job['state']}")
        return Fitted(job["calibrator"], job["report"])

    def _upload(self, form: "Form", progress: OnProgress) -> dict[str, Any]:
        headers = {
            "Content-Type": f"multipart/form-data; boundary={form.boundary}",
            "Content-Length": str(form.length),
        }
        with self._connection.open("/calibrate", form.pieces(progress), headers) as answer:
            job: dict[str, Any] = json.load(answer)
        return job

    def _follow(self, job_id: str, progress: OnProgress) -> dict[str, Any]:
        """Read a job's events until they end; gives the job as last told."""
        with self._connection.open(f"/calibrate/{job_id}/events") as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    job = json.loads(line[5:])
                    progress(job["stage"], job["progress"])
        last: dict[str, Any] = self._connection.json(f"/calibrate/{job_id}")
        return last


class Form:
    """A multipart body that is read from its files while it is sent."""

    def __init__(self, texts: dict[str, str], files: dict[str, Path]) -> None:
        self.boundary = uuid.uuid4().hex
        self._texts = b"".join(
            self._head(name) + text.encode() + b"\r\n" for name, text in texts.items()
        )
        self._files = files
        self._end = f"--{self.boundary}--\r\n".encode()
        sizes = (len(self._head(name, "data")) + path.stat().st_size + 2
                 for name, path in files.items())  # fmt: skip
        self.length = len(self._texts) + sum(sizes) + len(self._end)

    def pieces(self, progress: OnProgress) -> Iterator[bytes]:
        """Give the body piece by piece."""
        sent = len(self._texts)
        yield self._texts
        for name, path in self._files.items():
            yield self._head(name, "data")
            with path.open("rb") as file:
                while piece := file.read(CHUNK):
                    sent += len(piece)
                    progress("uploading", sent / self.length)
                    yield piece
            yield b"\r\n"
        yield self._end

    def _head(self, name: str, filename: str | None = None) -> bytes:
        given = f'; filename="{filename}"' if filename else ""
        return (
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'
        ).encode()


@contextmanager
def zipped(folder: Path) -> Iterator[Path]:
    """Pack a folder's pictures into a zip archive for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="segcal-zip-") as name:
        target = Path(name) / "pictures.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in ENDINGS:
                    archive.write(path, path.name)
        yield target
