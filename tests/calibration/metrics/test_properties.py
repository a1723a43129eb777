"""Properties of the metrics on random sets, and metrics recomputed by their definitions."""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.calibration.dataset import IGNORE, LabelledImage, labelled_pixels
from app.calibration.metrics.confidence_histogram import ConfidenceHistogram
from app.calibration.metrics.evaluation import Evaluation, Metrics
from app.calibration.metrics.reliability import ReliabilityBins
from tests.factories.toy_metrics import auroc_error_bound

Images = list[tuple[Tensor, Tensor]]
BOUNDED = settings(max_examples=25, deadline=None, derandomize=True)


def random_images(
    seed: int, sizes: Sequence[int], num_classes: int, sharpness: float = 3.0
) -> Images:
    """Images of (log-probabilities [m,K], labels [m])."""
    rng = torch.Generator().manual_seed(seed)
    images = []
    for size in sizes:
        logits = sharpness * torch.randn(size, num_classes, generator=rng)
        labels = torch.distributions.Categorical(logits=logits / 2).probs.multinomial(
            1, generator=rng
        )[:, 0]
        images.append((logits.log_softmax(1), labels))
    return images


def evaluated(images: Images, num_classes: int) -> Evaluation:
    evaluation = Evaluation(num_classes)
    for log_probabilities, labels in images:
        evaluation.add(log_probabilities, labels)
    return evaluation


def pixels_of(seed: int, size: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Confidence and hits of a set; few levels of confidence make ties."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, size)
    if levels:
        confidence = np.ceil(confidence * levels) / levels
    correct = rng.uniform(size=size) < confidence**2
    return torch.from_numpy(confidence), torch.from_numpy(correct)


seeds = st.integers(0, 2**32 - 1)
sets = st.builds(
    random_images,
    seeds,
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.just(4),
    st.floats(0.1, 20),
)


def assert_same(a: Metrics, b: Metrics) -> None:
    assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), rel=1e-9, nan_ok=True)


@BOUNDED
@given(sets, st.data())
def test_merging_in_any_grouping_equals_one_pass(images, data):
    whole = evaluated(images, 4)
    cuts = data.draw(st.lists(st.integers(0, len(images)), max_size=3).map(sorted))
    edges = [0, *cuts, len(images)]
    groups = [images[a:b] for a, b in pairwise(edges)]
    left = reduce(lambda a, b: a.merge(b), [evaluated(g, 4) for g in groups])
    right = reduce(lambda a, b: b.merge(a), [evaluated(g, 4) for g in reversed(groups)])
    for merged in (left, right):
        assert_same(merged.result(), whole.result())
        assert (merged.confusion == whole.confusion).all()
        assert (merged.bins.counts == whole.bins.counts).all()
        assert sorted(merged.images) == sorted(whole.images)
    assert left.images == whole.images


@BOUNDED
@given(sets, seeds)
def test_order_of_pixels_does_not_matter(images, seed):
    rng = torch.Generator().manual_seed(seed)
    shuffled = []
    for log_probabilities, labels in images:
        order = torch.randperm(len(labels), generator=rng)
        shuffled.append((log_probabilities[order], labels[order]))
    assert_same(evaluated(shuffled, 4).result(), evaluated(images, 4).result())


@BOUNDED
@given(seeds, st.integers(1, 30), st.integers(1, 8), st.floats(0.1, 20))
def test_imagewise_ece_is_never_below_pooled(seed, size, count, sharpness):
    images = random_images(seed, [size] * count, 3, sharpness)
    pooled, per_image = ReliabilityBins(10), []
    for log_probabilities, labels in images:
        pixels = log_probabilities.exp().amax(1), log_probabilities.argmax(1) == labels
        pooled.add(*pixels)
        per_image.append(ReliabilityBins(10).add(*pixels).ece())
    assert np.mean(per_image) >= pooled.ece() - 1e-12
    assert evaluated(images, 3).result().ece_image == pytest.approx(np.mean(per_image))


@BOUNDED
@given(seeds, st.integers(1, 60), st.integers(1, 20))
def test_bins_agree_with_a_loop(seed, size, count):
    confidence, correct = pixels_of(seed, size, levels=20)
    gaps, masses = [], []
    for i in range(count):
        inside = (confidence > i / count) & (confidence <= (i + 1) / count)
        if inside.any():
            gaps.append(abs(confidence[inside].mean() - correct[inside].double().mean()).item())
            masses.append(inside.sum().item())
    bins = ReliabilityBins(count).add(confidence, correct)
    assert bins.ece() == pytest.approx(np.dot(gaps, masses) / size)
    assert bins.mce(1) == pytest.approx(max(gaps))


@BOUNDED
@given(seeds, st.integers(2, 60), st.sampled_from([None, 5, 1000]))
def test_auroc_and_aurc_agree_with_sorting(seed, size, levels):
    confidence, correct = pixels_of(seed, size, levels)
    confidence_histogram = ConfidenceHistogram().add(confidence, correct)
    right, wrong = confidence[correct], confidence[~correct]
    if len(right) and len(wrong):
        pairs = wrong[:, None] - right
        exact = ((pairs < 0).double() + (pairs == 0) / 2).mean().item()
        bound = auroc_error_bound(confidence_histogram)
        assert abs(confidence_histogram.auroc() - exact) <= bound + 1e-12
    if levels:  # each level has a bin of its own: exact
        assert confidence_histogram.aurc() == pytest.approx(
            aurc_over_tied_orders(confidence, correct)
        )
    else:
        by_confidence = correct[confidence.argsort(descending=True)]
        prefixes = (~by_confidence).double().cumsum(0) / torch.arange(1, size + 1)
        assert confidence_histogram.aurc() == pytest.approx(prefixes.mean().item(), abs=2 / size)


def aurc_over_tied_orders(confidence: Tensor, correct: Tensor) -> float:
    """Mean over prefixes, the tied pixels each counting as their tie's mean."""
    total = seen = errors = 0.0
    for level in sorted(set(confidence.tolist()), reverse=True):
        tied = ~correct[confidence == level]
        for _ in range(len(tied)):
            seen += 1
            errors += tied.double().mean().item()
            total += errors / seen
    return total / len(confidence)


@BOUNDED
@given(seeds, st.integers(1, 60))
def test_risk_coverage_ends_at_the_error_rate(seed, size):
    confidence, correct = pixels_of(seed, size)
    curve = ConfidenceHistogram().add(confidence, correct).risk_coverage(points=7)
    assert len(curve) <= 7
    assert curve[-1].coverage == 1
    assert curve[-1].risk == pytest.approx(1 - correct.double().mean().item())


def test_unlabelled_pixels_leave_every_metric_bitwise_equal():
    logits = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30).reshape(6, 5) % 4
    labels[2:4] = IGNORE
    broken = logits.clone()
    broken[:, 2:4] = torch.nan
    first, second = (
        evaluated([(kept.log_softmax(1), y)], 4).result()
        for kept, y in (labelled_pixels(LabelledImage(z, labels)) for z in (logits, broken))
    )
    assert first == second


def test_confidences_near_one_have_bins_of_their_own():
    confidence = 1 - torch.logspace(-7, -1, 60, dtype=torch.float64)
    confidence_histogram = ConfidenceHistogram().add(confidence, torch.arange(60) % 2 == 0)
    assert auroc_error_bound(confidence_histogram) == 0
