"""Segment in this process, with a model of the configured folders."""

import torch

from app.cli.figures import Figures
from app.cli.segment_files import Request, Segmented
from app.imaging import encode
from app.imaging.decode import decode_image
from app.inference.predictor import open_predictor
from app.inference.threads import ActiveRequests, RowWorkers
from app.schemas.service import GUARANTEES
from app.serving.model_folders import find_model, max_concurrent_requests
from app.serving.pipeline import StageTimer
from app.serving.segmenter import (
    NO_CALIBRATOR,
    Segmentation,
    Segmenter,
    SegmentOptions,
    abstained_fraction,
)
from app.settings import Settings
from app.storage.artifacts import ArtifactStore


class LocalSegmenter:
    """Segments as the service does: as many images at once, with its sessions and threads."""

    def __init__(self, settings: Settings, request: Request) -> None:
        self.workers = max_concurrent_requests(settings)
        self._request, self._max_pixels = request, settings.max_pixels
        self._options = SegmentOptions(**request.options)
        self._active = ActiveRequests()
        folder = find_model(settings, request.options.get("model"))
        torch.set_num_threads(settings.threads if folder.path.suffix != ".onnx" else 1)
        name = folder.card.name
        self._segmenter = Segmenter(
            {name: open_predictor(folder, settings.device, settings.threads, self._active)},
            name,
            ArtifactStore(settings.artifacts_dir),
            settings.max_pixels,
            RowWorkers(settings.threads, self._active),
        )

    def __call__(self, image: bytes) -> Segmented:
        """Segment one image."""
        with self._active.enter():
            done = self._segmenter.segment(image, self._options, StageTimer())
            return Segmented(self._files(image, done), figures_of(done))

    def _files(self, image: bytes, done: Segmentation) -> dict[str, bytes]:
        palette, prediction = done.predictor.folder.palette, done.prediction
        files = {
            "mask": encode.mask_png(prediction.mask, palette),
            "confidence": encode.confidence_png(prediction.confidence),
        }
        if self._request.overlay:
            pixels = decode_image(image, self._max_pixels)
            files["overlay"] = encode.overlay_png(pixels, prediction.mask, palette)
        if self._request.heatmap:
            files["heatmap"] = encode.heatmap_png(prediction.confidence)
        return files


def figures_of(done: Segmentation) -> Figures:
    """Return the figures of a segmentation."""
    return Figures(
        model=done.predictor.folder.card.name,
        calibrator=done.calibrator.manifest.id if done.calibrator else NO_CALIBRATOR,
        width=done.prediction.mask.shape[1],
        height=done.prediction.mask.shape[0],
        mean_confidence=done.mean_confidence,
        abstained_fraction=abstained_fraction(done),
        threshold=done.threshold,
        in_distribution=done.prediction.in_distribution,
        guarantee=GUARANTEES[done.guarantee.applies] if done.guarantee else None,
    )
