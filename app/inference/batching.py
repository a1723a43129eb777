"""Requests that come together run as one batch, where a batch costs less than its parts.

On a CPU it does not (`benchmarks.sessions`: two images at a time gain 0-3%, four lose), so that
only a backbone on CUDA is given this.
"""

import threading
from dataclasses import dataclass

import numpy as np

from app.inference.backbone import Array, Backbone

LARGEST = 8  # images at a time


@dataclass(eq=False)
class _PendingInput:
    """One caller's images, and what became of them."""

    images: Array
    logits: Array | None = None
    error: Exception | None = None


class MicroBatches:
    """A backbone that takes equal-sized inputs of several callers at once; safe for threads.

    Nobody waits for company: a caller runs as soon as the backbone is free, and takes along who
    came in the meantime. A batch that fails is asked for one by one, and is not as large again: a
    network may be exported for single images, or memory end.
    """

    def __init__(self, backbone: Backbone, largest: int = LARGEST) -> None:
        self._backbone, self._largest = backbone, largest
        self.device = backbone.device
        self._waiting: list[_PendingInput] = []
        self._queue_lock, self._run_lock = threading.Lock(), threading.Lock()

    def __call__(self, images: Array) -> Array:
        """Images float32 [N,3,H,W] to logits float32 [N,K,h,w], maybe run with others'."""
        own = _PendingInput(images)
        with self._queue_lock:
            self._waiting.append(own)
        with self._run_lock:
            if own.logits is None and own.error is None:
                self._run(self._take_batch(own))
        if own.error is not None:
            raise own.error
        if own.logits is None:
            raise AssertionError("whoever has had a turn has an answer")
        return own.logits

    def _take_batch(self, own: _PendingInput) -> list[_PendingInput]:
        """Take a caller and others with inputs of one size off the list."""
        with self._queue_lock:
            others = [
                pending for pending in self._waiting
                if pending is not own and pending.images.shape == own.images.shape
            ]  # fmt: skip
            chosen = [own, *others[: self._largest - 1]]
            self._waiting = [pending for pending in self._waiting if pending not in chosen]
        return chosen

    def _run(self, batch: list[_PendingInput]) -> None:
        """Answer callers, together if the network can."""
        single, images = len(batch) == 1, [pending.images for pending in batch]
        try:
            stacked = images[0] if single else np.concatenate(images)
            parts = np.split(self._backbone(stacked), len(batch))
        except Exception as error:  # whatever a network raises at a batch it does not take
            if single:
                batch[0].error = error
                return
            for pending in batch:
                self._run([pending])
            if all(pending.logits is not None for pending in batch):  # so it was their number
                self._largest = len(batch) - 1
            return
        for pending, logits in zip(batch, parts, strict=True):
            pending.logits = logits
