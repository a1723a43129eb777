"""Collects accepted annotations of Label Studio in a thread, and queues guarded fits on them.

A webhook only announces the id of an annotation. The annotation, its task, its project and its
image are read from the configured Label Studio with the operator's token, so that whoever can call
the webhook can neither add labels nor choose the addresses that are read.
"""

import asyncio
import logging
import threading
from pathlib import Path

from app.api.calibrate import submit
from app.api.dependencies import State
from app.api.labelstudio.connection import Connection
from app.api.labelstudio.labelling_config import read_control
from app.api.labelstudio.regions import label_map_of, void_of
from app.datasets.collection import Collection
from app.deadline import Deadline
from app.errors import (
    ArgumentError,
    BusyError,
    ConflictError,
    SegcalError,
    StorageError,
    UnavailableError,
)
from app.inference.model_card import ModelFolder
from app.jobs.store import UPLOAD
from app.schemas.service import CalibrateForm
from app.storage.files import try_locked

log = logging.getLogger(__name__)

FOLDER = ".labelstudio"  # in the folder of artefacts
IDLE_S = 5.0  # between attempts at annotations that could not be read
DOWNLOADS = 8  # images of predictions in memory, each of SEGCAL_MAX_UPLOAD_BYTES at most
STOP_S = 2.0  # for the thread to end; it is a daemon
TEMPORARY = (BusyError, StorageError, UnavailableError)


class Collector:
    """Annotations of each model, on disk below the folder of artefacts."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._root = state.settings.state_dir / FOLDER
        self.connection = Connection(state.settings)
        self.downloads = asyncio.Semaphore(DOWNLOADS)
        self._wake = threading.Event()
        self._stopping = Deadline()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, where Label Studio is configured."""
        if self.connection.configured:
            self._thread = threading.Thread(target=self._work, name="annotations", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread; what is announced stays announced."""
        self._stopping.expire("expected a running service, got one that is shutting down")
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_S)
        self.connection.close()

    def announce(self, model: str, annotations: list[int]) -> None:
        """Record annotations to read; raises ConflictError where Label Studio is not configured."""
        if not self.connection.configured:
            raise ConflictError(
                "expected SEGCAL_LABELSTUDIO_URL and SEGCAL_LABELSTUDIO_TOKEN, from where "
                "annotations are read, got a service without them"
            )
        collection = self._collection(model)
        for annotation in annotations:
            collection.announce(str(annotation))
        self._wake.set()

    def _collection(self, model: str) -> Collection:
        return Collection(self._root / model, self._state.settings.labelstudio_bytes)

    def _work(self) -> None:
        while True:
            self._wake.wait(IDLE_S)
            self._wake.clear()
            try:
                self._stopping.check()
                self._collect_all()
            except UnavailableError:
                return
            except Exception:  # the thread must outlive any one annotation
                log.exception("collecting annotations failed; it goes on")

    def _collect_all(self) -> None:
        """Collect what is announced for each served model, in one of several processes."""
        segmenter = self._state.readiness.segmenter
        if segmenter is None or not self._root.is_dir():
            return
        with try_locked(self._root / ".lock") as held:
            for predictor in segmenter.predictors.values() if held else ():
                collection = self._collection(predictor.folder.card.name)
                for name in collection.pending():
                    self._stopping.check()
                    self._collect(collection, predictor.folder, name)
                    self._refit_if_enough(collection, predictor.folder)
                self._refit_if_enough(collection, predictor.folder)

    def _collect(self, collection: Collection, folder: ModelFolder, name: str) -> None:
        """Collect one annotation; it stays announced where that may succeed later."""
        try:
            self._read(collection, folder, name)
        except TEMPORARY as error:
            log.warning("annotation %s will be read later: %s", name, error)
            return
        except SegcalError as error:
            log.warning("annotation %s is not collected: %s", name, error)
        collection.withdraw(name)

    def _read(self, collection: Collection, folder: ModelFolder, name: str) -> None:
        """Read an annotation and its image, and add them to the collection."""
        annotation = self.connection.read_json(f"/api/annotations/{int(name)}/")
        result, task_id = annotation.get("result"), annotation.get("task")
        if annotation.get("was_cancelled") or not isinstance(result, list):
            raise ArgumentError("expected an accepted annotation, got a skipped one")
        if not isinstance(task_id, int):
            raise ArgumentError("expected the annotation of a task, got one without")
        task = self.connection.read_json(f"/api/tasks/{task_id}/")
        project_id, data = task.get("project"), task.get("data")
        if not isinstance(project_id, int) or not isinstance(data, dict):
            raise ArgumentError("expected the task of a project, got one without")
        project = self.connection.read_json(f"/api/projects/{project_id}/")
        output = folder.card.output
        classes = [info.name for info in output.classes]
        control = read_control(str(project.get("label_config")), classes)
        image = self.connection.read_image(str(data.get(control.variable)), self._stopping)
        limit = self._state.settings.max_pixels
        height, width, _ = self._state.decoders.decode(image, limit, self._stopping).shape
        labels = label_map_of(result, control, output, (height, width))
        collection.add(f"p{project_id}-t{task_id}", image, labels)

    def _refit_if_enough(self, collection: Collection, folder: ModelFolder) -> None:
        """Queue a fit on all collected images where enough are new since the last one."""
        new = collection.new()
        if len(new) < self._state.settings.labelstudio_refit_images:
            return
        try:
            job = self._submit(collection, folder)
        except TEMPORARY as error:
            log.warning("the fit on annotations will be queued later: %s", error)
            return
        except SegcalError as error:
            log.warning("the annotations can't be fitted: %s", error)
        else:
            log.info("queued the job %s on %d new annotations", job, len(new))
        collection.mark_fitted(new)

    def _submit(self, collection: Collection, folder: ModelFolder) -> str:
        """Queue a fit on all collected images and return its job; the gate activates it or not."""
        incoming: Path = self._state.jobs.reserve()
        try:
            count = collection.copy_to(incoming / UPLOAD)
            form = CalibrateForm(
                model=folder.card.name,
                ignore_index=void_of(folder.card.output),
                check_labels=True,
                note=f"{count} images labelled in Label Studio",
            )
            return submit(self._state, incoming, form, folder).id
        except BaseException:
            self._state.jobs.release(incoming)
            raise
