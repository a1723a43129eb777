import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.calibration import sampling
from app.calibration import softmax_regression as regression
from app.calibration.base import PART, FitContext, summed_products
from app.calibration.dataset import InMemory, LabelledImage
from app.calibration.methods.matrix import Dirichlet, Matrix, MatrixTI
from app.calibration.methods.vector import Vector, VectorProblem, VectorTI
from app.calibration.sampling import draw
from tests.factories.logits import nll, synthetic_set, table


def fitted(calibrator, data):
    calibrator.fit(data, FitContext())
    return calibrator


def test_bias_alone_reproduces_frequencies():
    # With constant logits, the best probabilities are the classes' frequencies, 6 : 3 : 1.
    labels = torch.tensor([0] * 6000 + [1] * 3000 + [2] * 1000)
    data = InMemory(3, [LabelledImage(torch.zeros(3, 10000), labels)])
    for kind in (Vector, VectorTI, Matrix, MatrixTI):
        calibrator = fitted(kind(3), data)
        given = calibrator(torch.zeros(1, 3))[0].exp().tolist()
        assert given == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
    bias = fitted(Vector(3), data).bias
    assert bias.sum().item() == pytest.approx(0, abs=1e-6)
    assert (bias[0] - bias[1]).item() == pytest.approx(math.log(2), abs=1e-3)


def test_inverse_hessian_is_positive_definite_for_collinear_parameters():
    labels = torch.tensor([0] * 6000 + [1] * 3000 + [2] * 1000)
    sample = draw(InMemory(3, [LabelledImage(torch.zeros(3, 10000), labels)]), FitContext())
    start = torch.tensor([[1.0, 1, 1, 0, 0, 0]]).double()
    for kind in (Vector, VectorTI):
        problem = VectorProblem(kind(3), sample, sample.counts == 0, start)
        assert torch.linalg.eigvalsh(problem.inverse).min() > 0


@pytest.mark.parametrize("count", [0, 1, PART - 1, PART, 40 * PART + 7])
def test_summed_products_are_exact_for_sorted_labels(count):
    # Like gradients at the minimum, where the sums of thousands of pixels per class cancel.
    labels = torch.arange(count) * 3 // max(count, 1)
    slopes = torch.full((count, 3), 1 / 3).scatter_add_(
        1, labels[:, None], -torch.ones(count, 1)
    )  # fmt: skip
    for features in (torch.ones(count, 1), torch.rand(count, 2)):
        found, exact = summed_products(slopes, features), slopes.double().T @ features.double()
        assert found.dtype == torch.float64
        assert (found - exact).abs().max() <= 1e-6 * count


def test_rows_of_translation_invariant_matrix_have_equal_sums():
    sums = fitted(MatrixTI(5), synthetic_set(5)).weight.sum(1)
    assert (sums - 1).abs().max() < 1e-4


def test_translation_invariant_matrix_of_two_classes_is_platt_scaling():
    weight = fitted(MatrixTI(2), synthetic_set(2)).weight
    assert (weight[0] - weight[1]).sum().item() == pytest.approx(0, abs=1e-4)


def test_nested_methods_are_nested():
    data = synthetic_set(4)
    dirichlet = nll(fitted(Dirichlet(4, off_diagonal=0, bias_weight=0), data), data)
    assert dirichlet <= nll(fitted(MatrixTI(4), data), data) + 1e-6
    assert dirichlet <= nll(fitted(VectorTI(4), data), data) + 1e-6


@pytest.mark.parametrize("kind", [Matrix, Vector])
def test_solver_reaches_the_optimum_of_torch(kind):
    data = synthetic_set(4)
    logits, labels = table(data)
    weight = torch.eye(4, dtype=torch.float64) if kind is Matrix else torch.ones(4).double()
    weight, bias = weight.requires_grad_(), torch.zeros(4).double().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        z = logits.double()
        loss = cross_entropy((z @ weight.T if kind is Matrix else z * weight) + bias, labels)
        loss.backward()
        return loss

    solver.step(closure)
    assert nll(fitted(kind(4), data), data) == pytest.approx(closure().item(), abs=2e-6)


def test_strong_odir_leaves_a_scaled_diagonal():
    data = synthetic_set(4)
    strong = fitted(Dirichlet(4, off_diagonal=1e4, bias_weight=1e4), data)
    assert strong.summary()["largest_off_diagonal"] < 1e-3
    assert strong.summary()["largest_bias"] < 1e-3
    assert strong.summary()["mean_diagonal"] < 0.9


def test_absent_class_keeps_its_row():
    data = synthetic_set(4)
    images = [
        image._replace(labels=image.labels.where(image.labels != 2, -1)) for image in data.images
    ]
    calibrator = fitted(Matrix(4), InMemory(4, images))
    assert calibrator.weight[2].tolist() == [0, 0, 1, 0]
    assert calibrator.bias[2] == 0
    assert calibrator.bias.sum().item() == pytest.approx(0, abs=1e-6)


def test_passes_over_all_pixels_refine_the_fit_on_a_sample(monkeypatch):
    data = synthetic_set(4)
    whole = fitted(Matrix(4), data)
    small = partial(sampling.draw, budget=4 * 300)
    assert not small(data, FitContext()).complete
    monkeypatch.setattr(regression, "draw", small)
    streamed = fitted(Matrix(4), data)
    logits = 3 * torch.randn(50, 4)
    assert (whole(logits).exp() - streamed(logits).exp()).abs().max() < 1e-4
