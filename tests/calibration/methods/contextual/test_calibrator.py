"""Contextual scaling: detector, in-distribution score, kernel and definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, InMemory, LabelledImage
from app.calibration.methods.contextual import Contextual
from app.calibration.methods.contextual.detector import sample_pixels
from app.calibration.methods.contextual.features import (
    MIN_COLUMNS,
    compute_features,
    subsampled,
)
from app.calibration.top_class import scale_for
from tests.factories.logits import synthetic_set


def noise(classes, height, width, seed=0, scale=3.0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(classes, height, width, generator=rng)


def random_detector(classes, seed=0):
    """Build a calibrator whose detector has random weights."""
    calibrator = Contextual(classes)
    rng = torch.Generator().manual_seed(seed)
    for parameter in calibrator.detector.parameters():
        parameter.normal_(0, 0.3, generator=rng)
    calibrator.detector.mean.normal_(0, 1, generator=rng)
    calibrator.beta.fill_(0.7)
    return calibrator.eval()


def detectable_set(images=8, seed=0, classes=4):
    """Build images whose labels are wrong where the two leading classes are 2 and 3."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(images):
        logits = 2 * torch.randn(classes, 16, 16, generator=rng)
        order = logits.argsort(dim=0, descending=True)
        hard = order[0] >= 2
        flip = hard & (torch.rand(16, 16, generator=rng) < 0.7)
        made.append(LabelledImage(logits, torch.where(flip, order[1], order[0])))
    return InMemory(classes, made)


def test_an_unfitted_calibrator_is_the_identity():
    logits = noise(5, 7, 9)[None] * 4
    assert torch.equal(Contextual(5)(logits), logits.log_softmax(1))


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.9, 0.999])
def test_scale_gives_the_wanted_confidence(wanted):
    logs = noise(5, 20, 20)[None].log_softmax(1)
    scale = scale_for(logs, torch.full((1, 1, 20, 20), wanted).logit())
    confidence = (logs * scale).softmax(1).amax(1)
    within = scale[:, 0] < 49  # near ties would need more than the bound of 50
    assert within.float().mean() > 0.9
    assert (confidence - wanted)[within].abs().max() < 1e-4


def test_scale_by_hand():
    # Two classes: the log-odds are the scale times the gap, so a gap of 2 and 3 need 1.5.
    logs = torch.tensor([[2.0, 0.0]]).log_softmax(1)
    assert scale_for(logs, torch.tensor([[3.0]])).item() == pytest.approx(1.5, rel=1e-5)


def test_scale_of_ties_and_of_confidences_below_uniform_stays_in_bounds():
    logs = torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 0.0], [3.0, 1.0, 0.0]]).log_softmax(1)
    scale = scale_for(logs, torch.tensor([[2.0], [2.0], [-5.0]]))
    assert torch.isfinite(scale).all()
    assert scale[2].item() == pytest.approx(1e-3)


@settings(max_examples=25, deadline=None)
@given(
    classes=st.sampled_from([2, 3, 11]),
    height=st.integers(1, 24),
    width=st.one_of(st.integers(1, 40), st.integers(150, 250)),
    seed=st.integers(0, 9),
)
def test_kernel_agrees_with_its_definition(classes, height, width, seed):
    calibrator = random_detector(classes, seed)
    logits = noise(classes, height, width, seed)
    found = calibrator.log_odds_shift(logits)
    logs = (logits[None] * calibrator.beta).log_softmax(1)
    features = compute_features(subsampled(logs, found.stride))
    expected = calibrator.detector.on_image(features)[0].numpy()
    assert np.abs(found.shift - expected).max() < 1e-4
    statistics = found.sums.sum(0) / found.shift.size
    fractions = np.bincount(logits[:, :: found.stride, :: found.stride].argmax(0).ravel().numpy(),
                            minlength=classes) / found.shift.size  # fmt: skip
    assert statistics[0] == pytest.approx(features.entropy.mean().item(), abs=1e-3)
    assert statistics[1] == pytest.approx(features.log_odds.mean().item(), abs=1e-3)
    assert statistics[2:] == pytest.approx(fractions, abs=1e-6)


def test_strips_joined_equal_the_whole_grid():
    calibrator = random_detector(3)
    logits = noise(3, 60, 2 * MIN_COLUMNS)
    radius = calibrator.invariances.receptive_radius
    parts = []
    for start in range(0, 60, 12):
        top = max(0, (start - radius) // 6 * 6)
        stop = min(60, start + 12 + radius + 1)
        shift = calibrator.log_odds_shift(logits[:, top:stop])
        parts.append(shift.within(top, range(start, start + 12)))
    joined, whole = type(parts[0]).joined(parts), calibrator.log_odds_shift(logits)
    assert np.abs(joined.shift - whole.shift).max() < 1e-4
    assert np.allclose(joined.sums, whole.sums, rtol=1e-4)


def test_no_confidence_falls_below_uniform():
    calibrator = random_detector(3)
    calibrator.detector.outward.zero_()
    calibrator.detector.offset.fill_(-20.0)
    confidence = calibrator(noise(3, 9, 9)[None]).exp().amax(1)
    assert confidence.min().item() == pytest.approx(1 / 3, abs=1e-3)


def test_an_image_out_of_distribution_keeps_its_own_confidence():
    calibrator = random_detector(3)
    calibrator.score.precision.fill_diagonal_(1e6)
    calibrator.score.threshold.fill_(1e-6)
    logits = noise(3, 9, 9)[None]
    assert calibrator.log_odds_shift(logits[0]).combined()[1] == 0
    assert torch.equal(calibrator(logits), (logits * calibrator.beta).log_softmax(1))


def test_fit_lowers_the_likelihood_of_held_out_images_where_errors_can_be_predicted():
    calibrator, fresh = Contextual(4), detectable_set(8, seed=1)
    calibrator.fit(detectable_set(16), FitContext(seed=1))
    image = [(image.logits[None], image.labels[None]) for image in fresh.images]
    before, after = (
        sum(torch.nn.functional.nll_loss(logs(z), y).item() for z, y in image)
        for logs in (lambda z: (z * calibrator.beta).log_softmax(1), calibrator)
    )
    assert after < 0.9 * before


def test_fit_is_repeatable():
    states = []
    for _ in range(2):
        calibrator = Contextual(4)
        calibrator.fit(detectable_set(), FitContext(seed=3))
        states.append(calibrator.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_only_a_temperature_is_left_where_nothing_is_mispredicted():
    data = synthetic_set(4)
    images = [LabelledImage(z, z.argmax(0).where(y != IGNORE, IGNORE)) for z, y, _ in data.images]
    calibrator = Contextual(4)
    calibrator.fit(InMemory(4, images), FitContext())
    assert not calibrator.detector.trained
    assert calibrator.log_odds_shift(noise(4, 3, 3)) is None
    assert calibrator.predict_errors(noise(4, 3, 3)[None]) is None


def test_temperature_is_1_where_it_does_not_help_held_out_images():
    rng = torch.Generator().manual_seed(0)
    images = []
    for _ in range(12):
        logits = torch.randn(3, 30, 30, generator=rng)
        labels = torch.multinomial(logits.softmax(0).flatten(1).T, 1, generator=rng)
        images.append(LabelledImage(logits, labels.view(30, 30)))
    calibrator = Contextual(3)
    calibrator.fit(InMemory(3, images), FitContext())
    assert calibrator.beta.item() == pytest.approx(1, abs=0.05)


def test_sample_holds_at_most_3000_labelled_pixels_of_an_image():
    logits = noise(3, 70, 70)
    labels = logits.argmax(0)
    labels[:10] = IGNORE
    features = compute_features(logits[None].log_softmax(1))
    sample = sample_pixels(features, labels[None], torch.Generator().manual_seed(0))
    assert len(sample) == 3000
    assert sample.correct.all()
    assert math.isclose(sample.values.shape[1], features.values.shape[1])


def test_forward_equals_the_shifted_confidence_also_at_near_ties():
    calibrator, logits = random_detector(3), noise(3, 40, 50, scale=4)
    change, score = calibrator.log_odds_shift(logits).combined()
    confidence = (logits * calibrator.beta).softmax(0).amax(0).double()
    own = (confidence / (1 - confidence)).log().clamp(max=12)
    served = torch.sigmoid(own + score * torch.from_numpy(change)).clamp_min(1 / 3)
    reported = calibrator(logits[None])[0].exp().amax(0)
    assert (served - reported).abs().max() < 4e-3  # b is at least 0.001


def test_errors_of_saturated_logits_are_learned():
    rng = torch.Generator().manual_seed(0)
    images = []
    for _ in range(16):
        logits = torch.randn(3, 20, 20, generator=rng)
        logits += 25 * torch.nn.functional.one_hot(logits.argmax(0), 3).movedim(2, 0)
        wrong = (logits.argmax(0) == 2) & (torch.rand(20, 20, generator=rng) < 0.4)
        images.append(LabelledImage(logits, logits.argmax(0).where(~wrong, 0)))
    calibrator = Contextual(3)
    calibrator.beta.fill_(1)
    calibrator.fit(InMemory(3, images), FitContext())
    logits, labels, _ = images[0]
    confidence = calibrator(logits[None])[0].exp().amax(0)
    third = logits.argmax(0) == 2
    assert confidence[third].mean().item() == pytest.approx(0.6, abs=0.1)
    assert confidence[~third].mean() > 0.95
    assert (labels[third] == 2).float().mean().item() == pytest.approx(0.6, abs=0.1)


def test_a_fit_on_tables_ignores_the_neighbourhood_of_maps():
    images = [LabelledImage(z.flatten(1), y.flatten()) for z, y, _ in detectable_set().images]
    calibrator = Contextual(4)
    calibrator.fit(InMemory(4, images), FitContext())
    assert calibrator.detector.trained
    assert calibrator.detector.scale[1:].tolist() == [0, 0]


@pytest.mark.parametrize("labelled", [range(1), range(7, 8), range(4)])
def test_fit_needs_no_labels_in_every_image(labelled):
    images = [
        LabelledImage(z, y if number in labelled else torch.full_like(y, IGNORE))
        for number, (z, y, _) in enumerate(detectable_set().images)
    ]
    calibrator = Contextual(4)
    calibrator.fit(InMemory(4, images), FitContext())
    assert all(tensor.isfinite().all() for tensor in calibrator.state_dict().values())
    assert calibrator.beta != 1


def test_fit_survives_labels_that_the_stride_skips():
    images = []
    for logits, labels, _ in detectable_set().images:
        fine = logits.repeat_interleave(15, 1).repeat_interleave(15, 2)
        sparse = torch.full(fine.shape[1:], IGNORE)
        sparse[1::15, 1::15] = labels
        images.append(LabelledImage(fine, sparse))
    calibrator = Contextual(4)
    calibrator.fit(InMemory(4, images), FitContext())
    assert not calibrator.detector.trained
    assert all(tensor.isfinite().all() for tensor in calibrator.state_dict().values())
