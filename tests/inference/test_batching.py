"""Micro-batches: who comes while the backbone is at work runs together with others of its size."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.errors import ArgumentError
from app.inference.backbone import open_backbone
from app.inference.batching import MicroBatches
from tests.factories.models import expected_logits


class Gate:
    """A real backbone whose first run waits until it is told to go on."""

    device = "cpu"

    def __init__(self, backbone, refuses=None):
        self._backbone, self._refuses = backbone, refuses
        self.entered, self.open = threading.Event(), threading.Event()
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(images.shape)
        if not self.entered.is_set():
            self.entered.set()
            assert self.open.wait(10)
        if self._refuses is not None and self._refuses(images):
            raise ArgumentError("expected something else")
        return self._backbone(images)


@pytest.fixture
def tiny(tiny_folders):
    return open_backbone(tiny_folders["onnx"] / "model.onnx", "cpu", 1)


def make_images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.random((1, 3, *size), dtype=np.float32) for size in sizes]


def all_at_once(gate, images, largest=8):
    """Ask for the first, and for all others while it is at work; futures in order."""
    batches = MicroBatches(gate, largest)
    with ThreadPoolExecutor(len(images)) as pool:
        futures = [pool.submit(batches, images[0])]
        assert gate.entered.wait(10)
        futures += [pool.submit(batches, image) for image in images[1:]]
        while len(batches._waiting) < len(images) - 1:
            threading.Event().wait(0.001)
        gate.open.set()
    return futures


def test_company_of_one_size_runs_together_and_each_gets_its_own(tiny):
    images = make_images((4, 6), (4, 6), (8, 8), (4, 6), (8, 8))
    gate = Gate(tiny)
    for image, future in zip(images, all_at_once(gate, images), strict=True):
        assert np.allclose(future.result(), expected_logits(image), atol=1e-6)
    assert gate.sizes[0] == (1, 3, 4, 6)
    assert sorted(gate.sizes[1:]) == [(2, 3, 4, 6), (2, 3, 8, 8)]


def test_batches_have_a_largest_size(tiny):
    gate = Gate(tiny)
    images = make_images(*[(4, 6)] * 6)
    for image, future in zip(images, all_at_once(gate, images, largest=2), strict=True):
        assert np.allclose(future.result(), expected_logits(image), atol=1e-6)
    assert max(size[0] for size in gate.sizes) == 2


def test_network_that_refuses_batches_is_asked_for_each(tiny):
    gate = Gate(tiny, refuses=lambda images: len(images) > 1)
    images = make_images(*[(4, 6)] * 4)
    for image, future in zip(images, all_at_once(gate, images), strict=True):
        assert np.allclose(future.result(), expected_logits(image), atol=1e-6)
    assert [size[0] for size in gate.sizes] == [1, 3, 1, 1, 1]


def test_who_is_refused_alone_leaves_the_others_their_batches(tiny):
    gate = Gate(tiny, refuses=lambda images: images.shape[2] == 4)
    images = make_images((8, 8), (4, 6), (4, 6), (8, 8), (8, 8))
    futures = all_at_once(gate, images)
    for place in (0, 3, 4):
        assert np.allclose(futures[place].result(), expected_logits(images[place]), atol=1e-6)
    for place in (1, 2):
        with pytest.raises(ArgumentError, match="something else"):
            futures[place].result()
    assert (2, 3, 8, 8) in gate.sizes


def test_nobody_waits_for_company(tiny):
    (image,) = make_images((4, 6))
    assert np.array_equal(MicroBatches(tiny)(image), tiny(image))
