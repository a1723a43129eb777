"""Dynamic batching: inputs of equal shape that are queued during a run form the next batches."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.errors import ArgumentError
from app.inference.backbone import open_backbone
from app.inference.batching import BatchingBackbone
from tests.factories.models import expected_logits


class BlockingBackbone:
    """A real backbone whose first run blocks until `release` is set."""

    device = "cpu"

    def __init__(self, backbone, rejects=None):
        self._backbone, self._rejects = backbone, rejects
        self.entered, self.release = threading.Event(), threading.Event()
        self.shapes = []

    def __call__(self, images):
        self.shapes.append(images.shape)
        if not self.entered.is_set():
            self.entered.set()
            assert self.release.wait(10)
        if self._rejects is not None and self._rejects(images):
            raise ArgumentError("expected something else")
        return self._backbone(images)


@pytest.fixture
def tiny(tiny_folders):
    return open_backbone(tiny_folders["onnx"] / "model.onnx", "cpu", 1)


def make_images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.random((1, 3, *size), dtype=np.float32) for size in sizes]


def run_concurrently(backbone, images, max_batch_size=8):
    """Run the first image, queue all others during its run; return the futures in order."""
    batching = BatchingBackbone(backbone, max_batch_size)
    with ThreadPoolExecutor(len(images)) as pool:
        futures = [pool.submit(batching, images[0])]
        assert backbone.entered.wait(10)
        futures += [pool.submit(batching, image) for image in images[1:]]
        while len(batching._queue) < len(images) - 1:
            threading.Event().wait(0.001)
        backbone.release.set()
    return futures


def test_queued_inputs_of_equal_shape_run_as_one_batch(tiny):
    images = make_images((4, 6), (4, 6), (8, 8), (4, 6), (8, 8))
    backbone = BlockingBackbone(tiny)
    for image, future in zip(images, run_concurrently(backbone, images), strict=True):
        assert np.allclose(future.result(), expected_logits(image), atol=1e-6)
    assert backbone.shapes[0] == (1, 3, 4, 6)
    assert sorted(backbone.shapes[1:]) == [(2, 3, 4, 6), (2, 3, 8, 8)]


def test_batches_are_limited_in_size(tiny):
    backbone = BlockingBackbone(tiny)
    images = make_images(*[(4, 6)] * 6)
    for image, future in zip(
        images, run_concurrently(backbone, images, max_batch_size=2), strict=True
    ):
        assert np.allclose(future.result(), expected_logits(image), atol=1e-6)
    assert max(shape[0] for shape in backbone.shapes) == 2


def test_network_that_rejects_batches_runs_each_input_alone(tiny):
    backbone = BlockingBackbone(tiny, rejects=lambda images: len(images) > 1)
    images = make_images(*[(4, 6)] * 4)
    for image, future in zip(images, run_concurrently(backbone, images), strict=True):
        assert np.allclose(future.result(), expected_logits(image), atol=1e-6)
    assert [shape[0] for shape in backbone.shapes] == [1, 3, 1, 1, 1]


def test_input_that_fails_alone_does_not_limit_the_batch_size(tiny):
    backbone = BlockingBackbone(tiny, rejects=lambda images: images.shape[2] == 4)
    images = make_images((8, 8), (4, 6), (4, 6), (8, 8), (8, 8))
    futures = run_concurrently(backbone, images)
    for place in (0, 3, 4):
        assert np.allclose(futures[place].result(), expected_logits(images[place]), atol=1e-6)
    for place in (1, 2):
        with pytest.raises(ArgumentError, match="something else"):
            futures[place].result()
    assert (2, 3, 8, 8) in backbone.shapes


def test_single_caller_runs_alone(tiny):
    (image,) = make_images((4, 6))
    assert np.array_equal(BatchingBackbone(tiny)(image), tiny(image))
