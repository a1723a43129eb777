"""Dynamic batching without a wait window, for backbones on CUDA.

On a CPU a batch costs as much as its images one by one (`benchmarks.sessions`: two images at a
time gain 0-3%, four lose), so that only a backbone on CUDA is wrapped.
"""

import threading
from dataclasses import dataclass

import numpy as np

from app.deadline import UNLIMITED, Deadline
from app.inference.backbone import Array, Backbone

MAX_BATCH_SIZE = 8  # callers' inputs


@dataclass(eq=False)
class _QueuedInput:
    """One caller's images, and their logits or the error once they were run."""

    images: Array
    logits: Array | None = None
    error: Exception | None = None


class BatchingBackbone:
    """A backbone that runs equal-sized inputs of several callers as one batch; safe for threads.

    Whoever holds the run lock runs all queued inputs of its own shape, up to `max_batch_size`. A
    network may be exported for single images, or memory run out: a failed batch is run again input
    by input, and where that succeeds, later batches are smaller than the failed one.
    """

    def __init__(self, backbone: Backbone, max_batch_size: int = MAX_BATCH_SIZE) -> None:
        self._backbone, self._max_batch_size = backbone, max_batch_size
        self.device = backbone.device
        self._queue: list[_QueuedInput] = []
        self._queue_lock, self._run_lock = threading.Lock(), threading.Lock()

    def __call__(self, images: Array, deadline: Deadline = UNLIMITED) -> Array:
        """Compute logits float32 [N,K,h,w] from images float32 [N,3,H,W].

        The deadline acts before the run: a batch belongs to several callers.
        """
        deadline.check()
        own = _QueuedInput(images)
        with self._queue_lock:
            self._queue.append(own)
        with self._run_lock:
            if own.logits is None and own.error is None:
                self._run(self._take_batch(own))
        if own.error is not None:
            raise own.error
        if own.logits is None:
            raise AssertionError("expected logits or an error after a run, got neither")
        return own.logits

    def _take_batch(self, own: _QueuedInput) -> list[_QueuedInput]:
        """Remove `own` and others of its shape from the queue and return them."""
        with self._queue_lock:
            others = [
                queued for queued in self._queue
                if queued is not own and queued.images.shape == own.images.shape
            ]  # fmt: skip
            batch = [own, *others[: self._max_batch_size - 1]]
            self._queue = [queued for queued in self._queue if queued not in batch]
        return batch

    def _run(self, batch: list[_QueuedInput]) -> None:
        """Run the backbone on a batch, or on each input alone where the batch fails."""
        single, images = len(batch) == 1, [queued.images for queued in batch]
        try:
            stacked = images[0] if single else np.concatenate(images)
            parts = np.split(self._backbone(stacked), len(batch))
        except Exception as error:  # backbones raise their runtimes' own exceptions
            if single:
                batch[0].error = error
                return
            for queued in batch:
                self._run([queued])
            if all(queued.logits is not None for queued in batch):  # too many, not a bad input
                self._max_batch_size = len(batch) - 1
            return
        for queued, logits in zip(batch, parts, strict=True):
            queued.logits = logits
