"""Requests that come together run as one batch, where a batch costs less than its parts.

On a CPU it does not (`benchmarks.sessions`: two pictures at a time gain 0-3%, four lose), so that
only a backbone on CUDA is given this.
"""

import threading
from dataclasses import dataclass

import numpy as np

from app.inference.backbone import Array, Backbone

LARGEST = 8  # pictures at a time


@dataclass(eq=False)
class _Asked:
    """One caller's images, and what became of them."""

    images: Array
    logits: Array | None = None
    error: Exception | None = None


class MicroBatches:
    """A backbone that takes equal-sized inputs of several callers at once; safe for threads.

    Nobody waits for company: a caller runs as soon as the backbone is free, and takes along who
    came in the meantime. A batch that fails is asked for one by one, and is not as large again: a
    network may be exported for single pictures, or memory end.
    """

    def __init__(self, backbone: Backbone, largest: int = LARGEST) -> None:
        self._backbone, self._largest = backbone, largest
        self.device = backbone.device
        self._waiting: list[_Asked] = []
        self._list, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, images: Array) -> Array:
        """Images float32 [N,3,H,W] to logits float32 [N,K,h,w], maybe run with others'."""
        own = _Asked(images)
        with self._list:
            self._waiting.append(own)
        with self._turn:
            if own.logits is None and own.error is None:
                self._run(self._company_of(own))
        if own.error is not None:
            raise own.error
        if own.logits is None:
            raise AssertionError("whoever has had a turn has an answer")
        return own.logits

    def _company_of(self, own: _Asked) -> list[_Asked]:
        """Take a caller and others with inputs of one size off the list."""
        with self._list:
            others = [
                asked for asked in self._waiting
                if asked is not own and asked.images.shape == own.images.shape
            ]  # fmt: skip
            chosen = [own, *others[: self._largest - 1]]
            self._waiting = [asked for asked in self._waiting if asked not in chosen]
        return chosen

    def _run(self, company: list[_Asked]) -> None:
        """Answer callers, together if the network can."""
        alone, images = len(company) == 1, [asked.images for asked in company]
        try:
            together = images[0] if alone else np.concatenate(images)
            parts = np.split(self._backbone(together), len(company))
        except Exception as error:  # whatever a network raises at a batch it does not take
            if alone:
                company[0].error = error
                return
            for asked in company:
                self._run([asked])
            if all(asked.logits is not None for asked in company):  # so it was their number
                self._largest = len(company) - 1
            return
        for asked, logits in zip(company, parts, strict=True):
            asked.logits = logits
