"""Reliability diagrams of stored versions, drawn in one thread of their own."""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from app.evaluation.charts import reliability_curves, reliability_diagram
from app.storage.artifacts import ArtifactStore

KEPT = 64  # diagrams of about 40 KB


class Diagrams:
    """Draws reliability diagrams and keeps the latest.

    matplotlib takes half a second for one and is not safe for threads. In the shared pool of
    threads a few requests would delay all others.
    """

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._thread = ThreadPoolExecutor(1, "diagrams")
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    async def svg(self, version: str) -> bytes:
        """Return a version's diagram as SVG; raises NotFoundError, ArtifactError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, version)

    def _draw(self, version: str) -> bytes:
        # The report is read for kept diagrams too, as the version may be deleted or damaged.
        report = self._artifacts.report(self._artifacts.model_of(version), version)
        if version not in self._kept:
            self._kept[version] = reliability_diagram(reliability_curves(report))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[version]
