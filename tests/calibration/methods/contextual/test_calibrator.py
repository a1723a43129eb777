"""Contextual scaling: the temperature that gives a wanted confidence, the trust, the kernel."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, InMemory, LabelledImage
from app.calibration.methods.contextual.calibrator import MAX_OOD_REDUCTION, Contextual
from app.calibration.methods.contextual.detector import DETECTOR_WEIGHTS
from app.calibration.methods.contextual.features import (
    COARSEST,
    COLUMNS,
    PLACED,
    context_of,
    feature_count,
    interpolated,
    log_odds,
    neighbourhood,
    stride_of,
    subsampled,
)
from app.calibration.methods.contextual.in_distribution import UNFITTED
from app.calibration.methods.contextual.kernels import BLOCK, SPAN
from app.calibration.methods.contextual.networks import subsampled_image
from app.calibration.methods.contextual.pixel_temperature import beta_for
from app.calibration.methods.contextual.position_prior import BANDS
from app.errors import ArgumentError
from tests.factories.logits import shift_of, synthetic_set

ONE, NOWHERE = torch.ones(()), torch.zeros(4, BANDS)


def std(classes, height, width, seed=0, by=3.0):
    rng = torch.Generator().manual_seed(seed)
    return by * torch.randn(classes, height, width, generator=rng)


@pytest.fixture(scope="module")
def fitted():
    calibrator = Contextual(4)
    calibrator.fit(synthetic_set(4, images=8), FitContext(seed=1))
    calibrator.detector.detector_weight.fill_(
        0.5
    )  # labels here are noise that no selector foretells
    return calibrator.eval()


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.9, 0.999])
def test_beta_gives_the_wanted_confidence(wanted):
    logs = std(5, 20, 20)[None].log_softmax(1)
    odds = torch.full((1, 1, 20, 20), wanted).logit()
    beta = beta_for(logs, odds)
    confidence = (logs * beta).softmax(1).amax(1)
    within = beta[:, 0] < 49  # near ties would need more than the bound of 50
    assert within.float().mean() > 0.9
    assert (confidence - wanted)[within].abs().max() < 1e-4


def test_beta_by_hand():
    # Two classes: log-odds are beta times the gap, so a gap of 2 and odds of 3 need 1.5.
    logs = torch.tensor([[2.0, 0.0]]).log_softmax(1)
    assert beta_for(logs, torch.tensor([[3.0]])).item() == pytest.approx(1.5, rel=1e-5)


def test_beta_of_ties_and_of_confidences_below_an_even_share_stays_in_bounds():
    logs = torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 0.0], [3.0, 1.0, 0.0]]).log_softmax(1)
    beta = beta_for(logs, torch.tensor([[2.0], [2.0], [-5.0]]))
    assert torch.isfinite(beta).all()
    assert beta[2].item() == pytest.approx(1e-3)


def test_neighbourhood_by_hand():
    labels = torch.zeros(1, 1, 20, 20, dtype=torch.int64)
    labels[..., 10:] = 1  # one border: 2 columns of cells have one neighbour of another label
    entropy = torch.full((1, 1, 20, 20), 0.25)
    short_entropy, short, long_entropy, long = neighbourhood(entropy, labels)[0]
    assert short_entropy.flatten().tolist() == pytest.approx([0.25] * 400)
    assert long_entropy[0, 0].item() == pytest.approx(0.25)
    assert short[5, 9].item() == pytest.approx(2 / 5)
    assert long[5, 9].item() == pytest.approx(2 / 15)
    assert short[5, 2].item() == 0


def test_tables_have_no_neighbourhood():
    logs = std(4, 1, 6)[:, 0][None].log_softmax(1)
    assert not context_of(logs, ONE, NOWHERE - 1).features[:, -4:].any()
    assert not context_of(logs, ONE, NOWHERE - 1).place.any()


def test_only_a_temperature_is_left_where_nothing_was_mispredicted():
    data = synthetic_set(4)
    images = [LabelledImage(z, z.argmax(0).where(y != IGNORE, IGNORE)) for z, y, _ in data.images]
    calibrator = Contextual(4)
    calibrator.fit(InMemory(4, images), FitContext())
    assert calibrator.detector.detector_weight == 0
    assert calibrator.log_odds_shift(std(4, 3, 3)) is None


def test_trust_is_one_of_a_few_shares_and_never_whole():
    calibrator = Contextual(4)
    calibrator.fit(synthetic_set(4), FitContext())
    assert calibrator.summary()["detector_weight"] in DETECTOR_WEIGHTS
    assert max(DETECTOR_WEIGHTS) < 1


def test_trust_is_nothing_where_labels_cannot_be_foretold():
    # Right or wrong by a coin that logits know nothing of: held-out images can't want the opinion.
    rng = torch.Generator().manual_seed(0)
    images = []
    for _ in range(10):
        truth = torch.randint(2, (14, 14), generator=rng)
        logits = torch.stack([1.0 - 2 * truth, 2.0 * truth - 1]) * 0.85  # confidence .845
        labels = truth.where(torch.rand(14, 14, generator=rng) < 0.845, 1 - truth)
        images.append(LabelledImage(logits, labels))
    calibrator = Contextual(2)
    calibrator.fit(InMemory(2, images), FitContext())
    assert calibrator.detector.detector_weight == 0


def make_image(height, width, seed=0):
    """Colours uint8 [3,h,w]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


class Augmented:
    """A set without images whose images have a copy on which every label is wrong."""

    num_classes = 4

    def __init__(self):
        self.data = synthetic_set(4)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]._replace(image=None)

    def augmented(self, index):
        logits, labels, _ = self.data[index]
        wrong = (logits.argmax(0) + 1) % 4
        return [LabelledImage(0.3 * logits, wrong.where(labels != IGNORE, IGNORE))]


def test_copies_under_other_weather_are_learnt_from():
    plain, corrupted = Contextual(4), Contextual(4)
    plain.fit(synthetic_set(4), FitContext())
    corrupted.fit(Augmented(), FitContext())
    dim = 0.3 * std(4, 12, 12)[None]
    assert not plain.robust
    assert corrupted.robust
    for name, tensor in plain.detector.state_dict().items():
        assert torch.equal(tensor, corrupted.detector.state_dict()[name])
    assert not plain.position_prior.any()  # all layouts are plausible where the network is at home
    assert torch.allclose(corrupted.position_prior.exp().sum(0), torch.ones(BANDS))
    confidence = [model(dim).exp().amax(1).mean().item() for model in (plain, corrupted)]
    assert confidence[1] < confidence[0] - 0.05


@settings(max_examples=30, deadline=None)
@given(
    classes=st.sampled_from([2, 3, 4, 7, 19]),
    height=st.integers(1, 20),
    width=st.integers(1, 90)
    | st.integers(2 * COLUMNS - 1, 2 * COLUMNS + 9)
    | st.integers(3 * COLUMNS - 1, 3 * COLUMNS + 9),
    local=st.sampled_from([0.0, 1.0]),
    in_distribution=st.sampled_from([1.0, 4.0, 8.0, UNFITTED]),
    robust=st.booleans(),
    image_in_distribution=st.sampled_from([1.0, 2.0, UNFITTED]),
    seed=st.integers(0, 99),
)
def test_kernel_says_what_torch_says(
    classes, height, width, local, in_distribution, robust, image_in_distribution, seed
):
    rng = torch.Generator().manual_seed(seed)
    calibrator = Contextual(classes)
    for name, tensor in calibrator.state_dict().items():
        if name.rpartition(".")[2] not in ("scale", "std", "threshold", "beta"):
            tensor.normal_(0, 0.3, generator=rng)
    calibrator.detector.detector_weight.fill_(0.5)
    calibrator.robust_detector.detector_weight.fill_(0.75)
    calibrator.detector.known.threshold.fill_(in_distribution)
    calibrator.robust_detector.known.threshold.fill_(8.0)
    calibrator.image_statistics.threshold.fill_(image_in_distribution)
    calibrator.robust, calibrator.needs_image = robust, robust and image_in_distribution < UNFITTED
    calibrator = calibrator.with_image(make_image(height, width, seed))
    calibrator.beta.fill_(0.8)
    calibrator.local.fill_(local)
    logits = std(classes, height, width, seed)
    calibrator.stride = stride_of(logits[None])
    logs = (0.8 * logits[None]).log_softmax(1)
    with torch.inference_mode():
        own = log_odds(logs.amax(1, keepdim=True))
        expected = (calibrator.detector_log_odds(logs) - own)[0, 0]
        shift = shift_of(calibrator, logits)
    assert (shift - expected).abs().max() < 2e-3 * (1 + expected.abs().max())


@pytest.mark.parametrize("width", [BLOCK - 1, BLOCK, BLOCK + 1, SPAN, SPAN + 1])
def test_kernel_says_what_torch_says_of_wide_tables(fitted, width):
    calibrator = copy.deepcopy(fitted)
    calibrator.stride = 1
    logits = std(4, 7, width)
    logs = (calibrator.beta * logits[None]).log_softmax(1)
    expected = calibrator.detector_log_odds(logs) - log_odds(logs.amax(1, keepdim=True))
    assert torch.allclose(shift_of(calibrator, logits), expected[0, 0], atol=2e-3)


@pytest.mark.parametrize("width", [33, 2 * COLUMNS, 3 * COLUMNS])
def test_kernel_in_parts_says_the_same(fitted, width):
    def in_parts(work, rows, _per_row):
        for row in reversed(rows):
            work(row, row + 1)

    logits = std(4, 17, width)
    fitted = copy.deepcopy(fitted)
    fitted.stride = stride_of(logits[None])
    whole, parts = fitted.log_odds_shift(logits), fitted.log_odds_shift(logits, in_parts)
    assert whole is not None
    assert np.array_equal(whole.combined(), parts.combined())


def test_fine_grids_are_looked_at_in_some_rows_and_columns():
    seen = torch.arange(12.0).reshape(1, 1, 3, 4) ** 2
    found = interpolated(subsampled(seen, 2), (3, 4), 2)[0, 0]
    # 0 1 4 9 / 16 25 36 49 / 64 81 100 121: what is skipped is the mean of its neighbours
    assert found.tolist() == [[0, 2, 4, 4], [32, 42, 52, 52], [64, 82, 100, 100]]
    steps = {
        columns: stride_of(torch.empty(1, 1, 3, columns))
        for columns in (1, 159, 160, 239, 240, 2000)
    }
    assert steps == {1: 1, 159: 1, 160: 2, 239: 2, 240: 3, 2000: COARSEST}
    assert stride_of(torch.empty(1, 1, 2000)) == 1
    assert torch.equal(interpolated(subsampled(seen, 1), (3, 4), 1), seen)


def test_opinions_on_unfamiliar_images_are_bounded(fitted):
    strange = 0.02 * synthetic_set(4, images=1, seed=5)[0].logits  # undecided everywhere
    shift = shift_of(fitted, strange)
    assert shift.max() <= 0
    assert shift.min() >= -MAX_OOD_REDUCTION - 1e-6


def at(detector, distance):
    """Mean features of an image so many times as far away as is familiar to an opinion."""
    known = detector.known
    return (known.mean + distance * known.threshold * known.std)[None]


def test_an_unfamiliar_image_lowers_a_little_and_never_raises(fitted):
    change = torch.tensor([-4.0, -0.2, 0.2, 4.0])
    at_home, abroad = (
        fitted.combined_shift([change], at(fitted.detector, d), 0, []) for d in (0, 2)
    )
    assert torch.equal(at_home, change)
    assert abroad.tolist() == pytest.approx([-MAX_OOD_REDUCTION, -0.2, 0, 0])


def test_the_wary_opinion_is_for_images_unlike_the_fits_and_lowers_only_what_it_does_not_know():
    calibrator = Contextual(3)
    calibrator.robust = True
    count = feature_count(3)
    calibrator.detector.known.threshold.fill_(1.0)
    calibrator.robust_detector.known.threshold.fill_(10.0)
    said = [torch.tensor([1.0, -1.0]), torch.tensor([3.0, -5.0])]
    far = torch.ones(1, count + PLACED)
    assert calibrator.combined_shift(said, 0.5 * far, 0, []).tolist() == [1, -1]
    assert calibrator.combined_shift(said, 1.25 * far, 0, []).tolist() == [2, -3]  # half of either
    assert calibrator.combined_shift(said, 9 * far, 0, []).tolist() == [3, -5]
    assert calibrator.combined_shift(said, 99 * far, 0, []).tolist() == [0, -5]


def test_the_wary_opinion_is_not_for_images_that_look_as_the_fits_do():
    calibrator = Contextual(3)
    calibrator.robust = True
    calibrator.detector.known.threshold.fill_(1.0)
    said = [torch.tensor([1.0, -1.0]), torch.tensor([3.0, -5.0])]
    far = 9 * torch.ones(1, feature_count(3) + PLACED)
    assert calibrator.combined_shift(said, far, 0, []).tolist() == [3, -5]
    assert calibrator.combined_shift(said, far, 1, []).tolist() == pytest.approx(
        [0, -MAX_OOD_REDUCTION]
    )
    half = [1.5, -(5 + MAX_OOD_REDUCTION.item()) / 2]
    assert calibrator.combined_shift(said, far, 0.5, []).tolist() == pytest.approx(half)


class InImages(Augmented):
    """The same with an image of each image."""

    def __getitem__(self, index):
        return self.data[index]


def test_a_fit_with_images_and_copies_looks_at_images_ever_after():
    calibrator = Contextual(4)
    calibrator.fit(InImages(), FitContext())
    calibrator.detector.known.threshold.fill_(1e-3)  # nothing is, so that the image decides
    logits = 0.3 * std(4, 12, 12)
    assert calibrator.robust
    assert calibrator.needs_image
    with pytest.raises(ArgumentError, match=r"expected the image, .* got none"):
        calibrator(logits[None])
    with pytest.raises(ArgumentError, match=r"expected the image, .* got none"):
        calibrator.log_odds_shift(logits)
    again = Contextual(4)
    again.load_state_dict(calibrator.state_dict())
    assert again.needs_image
    flat = torch.full((3, 12, 12), 99, dtype=torch.uint8)  # as through the thickest of fogs
    mean, foggy = (
        again.with_image(seen)(logits[None]).exp().amax(1).mean().item()
        for seen in (synthetic_set(4)[0].image, flat)
    )
    assert foggy < mean - 0.05
    calibrator.fit(synthetic_set(4), FitContext())
    assert not calibrator.needs_image
    assert not calibrator.image_statistics.fitted


def test_copies_without_images_are_learned_from_all_the_same():
    calibrator = Contextual(4)
    calibrator.fit(Augmented(), FitContext())
    assert (calibrator.robust, calibrator.needs_image) == (True, False)
    assert torch.isfinite(calibrator(std(4, 20, 20)[None])).all()


def test_what_is_looked_at_is_what_the_fit_looked_at():
    """Whatever an image's size, its cells are as far apart as those that were learned from."""
    images = [
        LabelledImage(z.repeat(1, 1, 14), y.repeat(1, 14)) for z, y, _ in synthetic_set(3).images
    ]
    calibrator = Contextual(3)
    calibrator.fit(InMemory(3, images), FitContext())
    assert calibrator.stride == stride_of(images[0].logits[None]) == 2
    other = Contextual(3)
    other.load_state_dict(calibrator.state_dict())
    other.detector.detector_weight.fill_(0.5)
    log_odds_shift = other.log_odds_shift(images[0].logits[:, :, :100])
    assert log_odds_shift is not None
    assert log_odds_shift.change.shape == (1, 6, 50)


def test_rows_of_a_table_are_what_a_table_of_maps_says(fitted):
    rows = std(4, 1, 30)[:, 0].T
    assert torch.equal(fitted(rows), fitted(rows.T[None])[0].T)


def test_without_a_grid_to_learn_from_the_images_own_decides():
    images = [LabelledImage(z.flatten(1), y.flatten()) for z, y, _ in synthetic_set(3).images]
    calibrator = Contextual(3)
    calibrator.fit(InMemory(3, images), FitContext())
    calibrator.detector.detector_weight.fill_(0.5)
    for width, columns in ((20, 20), (2 * COLUMNS, COLUMNS), (3 * COLUMNS, COLUMNS)):
        log_odds_shift = calibrator.log_odds_shift(std(3, 1, width))
        assert log_odds_shift is not None
        assert log_odds_shift.change.shape == (1, 1, columns)


@pytest.mark.parametrize(("rows", "columns", "begin"), [
    (slice(1, None, 3), slice(2, None, 3), (1, 2)),  # sparse labels, beside what is looked at
    (slice(None), slice(None), (0, 0)),
    (slice(1, None), slice(None), (0, 0)),  # a little less is no reason to look elsewhere
])  # fmt: skip
def test_sparse_labels_are_learned_from_where_they_lie(rows, columns, begin):
    labels = torch.full((12, 15), IGNORE)
    labels[rows, columns] = 1
    logits = std(3, 12, 15)
    seen = subsampled_image(LabelledImage(logits, labels), 3)
    assert torch.equal(seen.logits, logits[:, begin[0] :: 3, begin[1] :: 3])
    assert torch.equal(seen.labels, labels[begin[0] :: 3, begin[1] :: 3])
    assert (seen.labels == 1).any()


def test_a_single_pixel_to_learn_from_teaches_nothing():
    labels = torch.full((4, 4), IGNORE)
    labels[1, 1] = 1
    images = [LabelledImage(std(3, 4, 4, seed), labels + (labels == 1) * seed) for seed in (0, 1)]
    calibrator = Contextual(3)
    calibrator.fit(InMemory(3, images), FitContext())
    assert calibrator.detector.detector_weight == 0
    assert torch.isfinite(calibrator(std(3, 4, 4)[None])).all()


def test_a_wary_opinion_that_is_not_trusted_takes_no_caution_away(fitted):
    other = copy.deepcopy(fitted)
    state = other.state_dict()
    state["robust_detector.known.threshold"].fill_(1.0)
    other.load_state_dict(state)
    assert not other.robust
    state["robust_detector.detector_weight"].fill_(0.5)
    other.load_state_dict(state)
    assert other.robust


@pytest.mark.parametrize("stride", [2, 3])
def test_what_was_fitted_on_fine_grids_answers_every_row_of_a_table(fitted, stride):
    calibrator = copy.deepcopy(fitted)
    calibrator.spacing.fill_(stride)
    calibrator._cache_flags()
    logits = std(4, 1, 50)[:, 0]  # [K,m]
    assert calibrator(logits[None]).shape == (1, 4, 50)
    assert torch.equal(calibrator(logits.T), calibrator(logits[None])[0].T)
    assert calibrator.predict_errors(logits[None]).shape == (1, 50)
