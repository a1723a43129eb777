"""The contract of a calibrator, tested for every method of the registry."""

import copy
import warnings
from functools import cache

import onnxruntime
import pytest
import torch
from safetensors.torch import load, save

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, InMemory, LabelledImage, pixels
from app.calibration.registry import build, discover
from app.errors import ArgumentError
from tests.factories.logits import nll, relabelled, shift_of, synthetic_set

CLASSES = (2, 4, 11)
METHODS = tuple(discover())
SERIAL = [method for method in METHODS if "+" not in method]
STACKED = [method for method in METHODS if "+" in method]
# Combined forms share one class; three that differ most represent them in the slow tests.
CHOSEN = [*SERIAL, "selective+dirichlet", "selective+lts", "selective+metacal"]
AFFINE = ("vector", "vector_ti", "matrix", "matrix_ti", "dirichlet")
EXPORTED = [*SERIAL, "selective+dirichlet"]
# The identity is one of their states, and they are fitted by likelihood alone.
NESTED = ("temperature", *AFFINE, "ets", "cdc", "cmsap", "cmsop")
# These draw pixels, crops or images at random.
DRAWING = ("lts", "lts_image", "selective", "metacal", "contextual")
HEIGHT, WIDTH = 9, 10  # of the unseen logits_logits
IMAGE = torch.arange(3 * HEIGHT * WIDTH, dtype=torch.uint8).view(3, HEIGHT, WIDTH)


@cache
def data_for(num_classes):
    return synthetic_set(num_classes)


@cache
def fitted(method, num_classes):
    calibrator = build(method, num_classes)
    calibrator.fit(data_for(num_classes), FitContext(seed=1))
    return calibrator.eval().with_image(IMAGE)


def unfitted(method, num_classes):
    return build(method, num_classes).with_image(IMAGE)


def refitted(method, data, seed=1):
    calibrator = build(method, data.num_classes)
    calibrator.fit(data, FitContext(seed))
    return calibrator.eval().with_image(IMAGE)


def probabilities(calibrator, logits):
    with torch.inference_mode():
        return calibrator(logits).exp()


def unseen_logits(num_classes, seed=7):
    rng = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(2, num_classes, HEIGHT, WIDTH, generator=rng)


def largest_change(one, other, logits):
    return (probabilities(one, logits) - probabilities(other, logits)).abs().max().item()


def for_each(methods, classes=CLASSES):
    return pytest.mark.parametrize(
        ("method", "num_classes"), [(method, size) for method in methods for size in classes]
    )


@for_each(METHODS)
def test_unfitted_calibrator_is_softmax(method, num_classes):
    logits = unseen_logits(num_classes)
    plain = logits.softmax(1)
    assert (probabilities(unfitted(method, num_classes), logits) - plain).abs().max() < 1e-4


@for_each(["identity", "temperature"])
def test_scale_reproduces_temperature_scaling(method, num_classes):
    logits, calibrator = unseen_logits(num_classes), fitted(method, num_classes)
    scale = calibrator.scale()
    assert scale > 0
    assert torch.allclose((scale * logits).log_softmax(1), calibrator(logits), atol=1e-5)


@for_each([method for method in CHOSEN if method not in ("identity", "temperature", "contextual")])
def test_other_method_has_no_scale(method, num_classes):
    assert build(method, num_classes).scale() is None


@for_each(["contextual"])
def test_scale_and_shift_reproduce_confidence_of_contextual(method, num_classes):
    logits, calibrator = unseen_logits(num_classes)[0], copy.deepcopy(fitted(method, num_classes))
    calibrator.detector.offset.add_(0.5)
    own = (calibrator.scale() * logits).softmax(0).amax(0).logit(eps=1e-7)
    expected = (own + shift_of(calibrator, logits)).sigmoid().clamp(1 / num_classes)
    got = calibrator(logits[None])[0].exp().amax(0)
    assert (got - expected).abs().max() < 2e-3


@for_each(CHOSEN)
def test_output_is_a_float32_distribution(method, num_classes):
    logits = unseen_logits(num_classes)
    result = fitted(method, num_classes)(logits)
    assert result.dtype == torch.float32
    assert result.shape == logits.shape
    assert not result.requires_grad
    assert (result.exp().sum(1) - 1).abs().max() < 1e-5


@for_each(CHOSEN)
def test_extreme_logits_stay_finite(method, num_classes):
    logits = unseen_logits(num_classes)
    logits[0] *= 1.5e4
    logits[1, 0, 0], logits[1, -1, 1], logits[1, 0, 2] = 6e4, -6e4, torch.inf
    result = probabilities(fitted(method, num_classes), logits)
    assert torch.isfinite(result).all()
    assert (result.sum(1) - 1).abs().max() < 1e-5


@for_each(METHODS)
def test_nan_gives_uniform_at_its_pixel_only(method, num_classes):
    logits = unseen_logits(num_classes)
    broken = logits.clone()
    broken[0, -1, 3, 4] = torch.nan
    calibrator = fitted(method, num_classes)
    result = probabilities(calibrator, broken)
    assert result[0, :, 3, 4].tolist() == pytest.approx([1 / num_classes] * num_classes)
    assert (result[1] - probabilities(calibrator, logits)[1]).abs().max() < 1e-6


@for_each(CHOSEN, (4,))
def test_half_precision_logits(method, num_classes):
    logits = unseen_logits(num_classes).half()
    calibrator = fitted(method, num_classes)
    assert torch.equal(calibrator(logits), calibrator(logits.float()))


def shift_changes(calibrator, num_classes):
    logits = unseen_logits(num_classes)
    rng = torch.Generator().manual_seed(3)
    shifted = logits + 40 * torch.rand(2, 1, 9, 10, generator=rng) - 20
    changes = probabilities(calibrator, logits) - probabilities(calibrator, shifted)
    return changes.abs().amax(1)


@for_each(CHOSEN)
def test_translation(method, num_classes):
    calibrator = fitted(method, num_classes)
    changes = shift_changes(calibrator, num_classes)
    if calibrator.invariances.translation:
        assert changes.max() < 1e-5
    else:
        assert changes.max() > 1e-3


@for_each(METHODS)
def test_order_and_argmax(method, num_classes):
    calibrator = fitted(method, num_classes)
    ranked, classes = unseen_logits(num_classes).sort(dim=1, descending=True)
    calibrated = calibrator(unseen_logits(num_classes)).gather(1, classes)
    if calibrator.invariances.order:
        apart = ranked[:, :-1] - ranked[:, 1:] > 1e-3
        assert (calibrated[:, :-1] > calibrated[:, 1:])[apart].all()
    if calibrator.invariances.argmax:
        clear = ranked[:, 0] - ranked[:, 1] > 1e-3
        assert (calibrated.argmax(1) == 0)[clear].all()


@pytest.mark.parametrize("method", ["vector", "matrix", "dirichlet", "matrix_ti", "cdc"])
def test_method_without_argmax_invariance_changes_decisions(method):
    calibrated = fitted(method, 11)(unseen_logits(11))
    assert (calibrated.argmax(1) != unseen_logits(11).argmax(1)).any()


@for_each(NESTED)
def test_fit_does_not_raise_nll(method, num_classes):
    data = data_for(num_classes)
    before = nll(build("identity", num_classes), data)
    assert nll(fitted(method, num_classes), data) <= before + 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_fit_lowers_nll_of_overconfident_model(method):
    if method == "identity":
        pytest.skip("has no parameters")
    data = data_for(4)
    assert nll(fitted(method, 4), data) < nll(build("identity", 4), data) - 0.01


@for_each([method for method in CHOSEN if not build(method, 4).invariances.spatial], (4,))
def test_unlabelled_pixels_leave_fit_bitwise_equal(method, num_classes):
    images = [image._replace(logits=image.logits.clone()) for image in data_for(num_classes).images]
    for image in images:
        image.logits[:, image.labels == IGNORE] = torch.nan
    other = refitted(method, InMemory(num_classes, images)).state_dict()
    for name, tensor in fitted(method, num_classes).state_dict().items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("method", ["lts", "lts_image"])
def test_lts_loss_skips_unlabelled_pixels(method):
    images = data_for(4).images
    void = images[0]._replace(logits=torch.zeros(4, 12, 12), labels=torch.full((12, 12), IGNORE))
    refitted(method, InMemory(4, [*images, void]))


@for_each([method for method in SERIAL if method not in DRAWING], (4,))
def test_fit_does_not_depend_on_pixel_order(method, num_classes):
    rng = torch.Generator().manual_seed(5)
    mixed = []
    for logits, labels in pixels(data_for(num_classes)):
        order = torch.randperm(len(labels), generator=rng)
        mixed.append(LabelledImage(logits[order].T, labels[order]))
    other = refitted(method, InMemory(num_classes, mixed))
    logits = unseen_logits(num_classes)
    assert largest_change(fitted(method, num_classes), other, logits) < 1e-4


@for_each([method for method in CHOSEN if not build(method, 4).invariances.spatial], (4,))
def test_pixels_are_calibrated_independently(method, num_classes):
    logits = unseen_logits(num_classes)
    rows = logits.movedim(1, -1).reshape(-1, num_classes)
    calibrator = fitted(method, num_classes)
    whole = probabilities(calibrator, logits).movedim(1, -1).reshape(-1, num_classes)
    parts = torch.cat([probabilities(calibrator, part) for part in rows.split([7, 100, 73])])
    assert (whole - parts).abs().max() < 1e-6
    assert (probabilities(calibrator, rows.flip(0)).flip(0) - whole).abs().max() < 1e-6


@for_each(METHODS, (4,))
def test_state_survives_safetensors(method, num_classes):
    calibrator = fitted(method, num_classes)
    state = calibrator.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    other = unfitted(method, num_classes)
    other.load_state_dict(load(save({name: t.contiguous() for name, t in state.items()})))
    assert torch.equal(other(unseen_logits(num_classes)), calibrator(unseen_logits(num_classes)))
    assert other.summary() == calibrator.summary()


@for_each(CHOSEN, (4,))
def test_seed_determines_fit(method, num_classes):
    torch.manual_seed(99)
    other = refitted(method, data_for(num_classes)).state_dict()
    for name, tensor in fitted(method, num_classes).state_dict().items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_one_class_is_rejected_except_by_temperature(method):
    data = relabelled(data_for(4), lambda _, labels: labels.clamp_max(0))
    calibrator = build(method, 4)
    if method in ("identity", "temperature"):
        calibrator.fit(data, FitContext())
    else:
        with pytest.raises(ArgumentError, match="at least two classes"):
            calibrator.fit(data, FitContext())


@pytest.mark.parametrize("method", METHODS)
def test_set_without_labelled_pixel_is_rejected(method):
    if method == "identity":
        pytest.skip("has no parameters")
    data = relabelled(data_for(4), lambda _, labels: labels.clamp_max(IGNORE))
    with pytest.raises(ArgumentError):
        build(method, 4).fit(data, FitContext())


@for_each(CHOSEN, (4, 11))
def test_absent_class_keeps_a_plausible_probability(method, num_classes):
    data = relabelled(data_for(num_classes), lambda _, labels: labels.where(labels != 1, IGNORE))
    logits = unseen_logits(num_classes)
    result = probabilities(refitted(method, data), logits)
    assert torch.isfinite(result).all()
    assert result[:, 1].mean() > 0.3 * logits.softmax(1)[:, 1].mean()


@for_each(CHOSEN, (2, 4))
def test_perfect_model(method, num_classes):
    data = relabelled(
        data_for(num_classes), lambda logits, labels: logits.argmax(0).where(labels >= 0, IGNORE)
    )
    calibrator = refitted(method, data)
    result = probabilities(calibrator, unseen_logits(num_classes))
    assert torch.isfinite(result).all()
    if method != "metacal":
        assert nll(calibrator, data) <= nll(build("identity", num_classes), data) + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_progress_is_reported_and_may_cancel(method):
    def cancel(_stage, fraction):
        assert 0 <= fraction <= 1
        raise KeyboardInterrupt

    if method == "identity":
        pytest.skip("has no parameters")
    with pytest.raises(KeyboardInterrupt):
        build(method, 4).fit(data_for(4), FitContext(progress=cancel))


class AllMethods(torch.nn.Module):
    """Combine all methods in one graph, since each export takes a second at least."""

    def __init__(self):
        super().__init__()
        self.calibrators = [fitted(method, 4) for method in EXPORTED]
        self.owned = torch.nn.ModuleList(self.calibrators)

    def forward(self, logits, image):
        return tuple(calibrator.with_image(image)(logits) for calibrator in self.calibrators)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "calibrators.onnx"
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            AllMethods(), (unseen_logits(4), IMAGE), dynamo=True, verbose=False,
            dynamic_shapes=(free, {axis - 1: free[axis] for axis in (2, 3)}),
        )  # fmt: skip
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(logits, image):
        given = dict(zip(names, (logits.numpy(), image.numpy()), strict=True))
        return dict(zip(EXPORTED, session.run(None, given), strict=True))

    return run


@pytest.mark.parametrize("method", EXPORTED)
def test_onnx_gives_the_same_probabilities(method, exported):
    broken = unseen_logits(4, seed=9)
    broken[0, 2, 1, 1] = torch.nan
    for logits in (unseen_logits(4), unseen_logits(4, seed=8)[:1, :, :7], broken):
        image = IMAGE[:, : logits.shape[2]]
        ours = fitted(method, 4).with_image(image)(logits)
        theirs = torch.from_numpy(exported(logits, image)[method])
        assert (theirs.exp() - ours.exp()).abs().max() <= 1e-5
        assert torch.equal(theirs.argmax(1), ours.argmax(1))


def test_error_for_unknown_method_lists_known_ones():
    with pytest.raises(ArgumentError, match="expected one of identity, temperature"):
        build("magic", 4)


def test_stacked_names_cover_all_others():
    others = [method for method in SERIAL if method not in ("identity", "selective", "contextual")]
    assert [f"selective+{method}" for method in others] == STACKED
