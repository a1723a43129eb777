"""`segcal segment`: many pictures, here or on a running service, into a folder."""

import base64
import csv
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from app.artifacts import ArtifactStore
from app.errors import ArgumentError, InputError, SegcalError, UnavailableError
from app.imaging import encode
from app.inference.predictor import Predictor
from app.inference.row_threads import RowThreads
from app.service import NO_CALIBRATOR, Segmenter, Stopwatch, Wish, abstained_fraction
from app.settings import Settings

TIMEOUT_S = 120


@dataclass(frozen=True)
class Row:
    """One line of `figures.csv`; the last two in 0..1."""

    image: str
    model: str
    calibrator: str
    width: int
    height: int
    mean_confidence: float
    abstained_fraction: float


class Answer(NamedTuple):
    """One picture's mask and confidence as PNG, and its figures."""

    mask: bytes
    confidence: bytes
    row: Row


class Source(Protocol):
    """Where pictures are segmented."""

    def __call__(self, path: Path) -> Answer:
        """Segment one file; raises SegcalError."""


class Local:
    """This process, with the models on disk."""

    def __init__(self, settings: Settings, predictor: Predictor) -> None:
        torch.set_num_threads(settings.threads)
        name = predictor.folder.card.name
        store = ArtifactStore(settings.artifacts_dir)
        self._segmenter = Segmenter(
            {name: predictor}, name, store, settings.max_pixels, RowThreads(settings.threads)
        )

    def __call__(self, path: Path) -> Answer:
        """Segment one file."""
        done = self._segmenter.segment(path.read_bytes(), Wish(), Stopwatch())
        row = Row(
            image=str(path),
            model=done.predictor.folder.card.name,
            calibrator=done.calibrator.manifest.id if done.calibrator else NO_CALIBRATOR,
            width=done.mask.shape[1],
            height=done.mask.shape[0],
            mean_confidence=done.mean_confidence,
            abstained_fraction=abstained_fraction(done),
        )
        palette = done.predictor.folder.palette
        return Answer(
            encode.mask_png(done.mask, palette), encode.confidence_png(done.confidence), row
        )


class Remote:
    """A running service."""

    def __init__(self, url: str, model: str | None, token: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ArgumentError(f"--url: expected http:// or https://, got {url!r}")
        query = {"include": "mask,confidence"} | ({"model": model} if model else {})
        self._url = f"{url.rstrip('/')}/segment?{urllib.parse.urlencode(query)}"
        self._headers = {"Content-Type": "image/*", "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __call__(self, path: Path) -> Answer:
        """Send one file."""
        request = urllib.request.Request(self._url, path.read_bytes(), self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
                body = json.load(response)
        except urllib.error.HTTPError as error:
            raise InputError(problem_detail(error)) from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise UnavailableError(f"expected a service at {self._url}, got: {error}") from error
        row = Row(
            image=str(path),
            model=body["model"],
            calibrator=body["calibration"]["calibrator"],
            width=body["width"],
            height=body["height"],
            mean_confidence=body["mean_confidence"],
            abstained_fraction=body["abstained_fraction"],
        )
        mask, confidence = (base64.b64decode(body[part]["data"]) for part in ("mask", "confidence"))
        return Answer(mask, confidence, row)


def segment_all(
    images: Sequence[Path], out: Path, source: Source, advance: Callable[[], object]
) -> dict[Path, str]:
    """Write `<stem>.mask.png`, `<stem>.confidence.png` and `figures.csv`; return what failed.

    A picture that fails does not stop the others. Raises ArgumentError where two pictures would
    write the same file.
    """
    stems: dict[str, Path] = {}
    for path in images:
        if stems.setdefault(path.stem, path) != path:
            raise ArgumentError(
                f"expected pictures of different names, got {stems[path.stem]} and {path}"
            )
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[Path, str] = {}
    with (out / "figures.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(Row.__dataclass_fields__))
        table.writeheader()
        for path in images:
            try:
                answer = source(path)
            except SegcalError as error:
                failed[path] = str(error)
            else:
                (out / f"{path.stem}.mask.png").write_bytes(answer.mask)
                (out / f"{path.stem}.confidence.png").write_bytes(answer.confidence)
                table.writerow(asdict(answer.row))
            advance()
    return failed


def problem_detail(error: urllib.error.HTTPError) -> str:
    """Read the sentence out of a problem."""
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {error.code} {HTTPStatus(error.code).phrase}"
