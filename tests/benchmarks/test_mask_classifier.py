"""Mask classifiers of the study: matching, losses, and the mass as `contextual` gets it."""

import math

import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.comparison import evaluate_calibrators
from app.calibration.dataset import LabelledImage
from app.calibration.methods.contextual import Contextual
from app.calibration.methods.identity import Identity
from app.conversion.mask_classifiers import MaskClassifier
from benchmarks.paper.data import StoredPart
from benchmarks.paper.mask_classifier import (
    QUERIES,
    MaskHead,
    MaskOutputs,
    QueryNetwork,
    features_of,
    loss_of,
    mask_costs,
    matched,
)
from benchmarks.paper.mass_ablation import (
    LOG_MASS,
    VARIANTS,
    Use,
    WithMass,
    description,
    development,
    log_mass_of,
)
from tests.factories.logits import synthetic_set
from training.data import VOID
from training.networks import Architecture

CERTAIN = 20.0  # a logit whose sigmoid is 1 in float32


def test_costs_of_certain_masks():
    masks = torch.tensor([[CERTAIN, CERTAIN, -CERTAIN, -CERTAIN]])
    targets = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]])
    cross_entropy, dice = mask_costs(masks, targets)
    # Wrong at none, four and one of the four cells, at 20 nats each.
    torch.testing.assert_close(cross_entropy, torch.tensor([[0.0, 20, 5]]), atol=1e-5, rtol=0)
    # 1 - (2 * common + 1) / (sum of both areas + 1)
    torch.testing.assert_close(dice, torch.tensor([[0, 1 - 1 / 5, 1 - 3 / 4]]), atol=1e-5, rtol=0)


def perfect(labels):
    """Return two queries' certain outputs of the classes 2 and 0, and a third one of none."""
    scores = torch.full((1, 3, 4), -CERTAIN)
    scores[0, [0, 1, 2], [2, 0, 3]] = CERTAIN
    masks = torch.full((1, 3, *labels.shape[1:]), -CERTAIN)
    masks[0, 0][labels[0] == 2] = CERTAIN
    masks[0, 1][labels[0] == 0] = CERTAIN
    return MaskOutputs(scores, masks)


@pytest.fixture
def labels():
    return torch.tensor([[[0, 0, 2], [0, 2, VOID]]])


def test_queries_are_matched_with_the_classes_they_predict(labels):
    outputs, kept = perfect(labels), labels[0] != VOID
    classes = torch.tensor([0, 2])
    targets = (labels[0][kept] == classes[:, None]).float()
    rows, columns = matched(
        outputs.class_queries_logits[0], outputs.masks_queries_logits[0][:, kept], classes, targets
    )
    assert dict(zip(rows.tolist(), classes[columns].tolist(), strict=True)) == {0: 2, 1: 0}


def test_loss_is_zero_for_perfect_outputs_whatever_the_void_cells(labels):
    outputs = perfect(labels)
    assert loss_of(outputs, labels).item() == pytest.approx(0, abs=1e-4)
    outputs.masks_queries_logits[0, :, 1, 2] = CERTAIN
    assert loss_of(outputs, labels).item() == pytest.approx(0, abs=1e-4)
    outputs.masks_queries_logits[0, 0, 0, 0] = CERTAIN
    assert loss_of(outputs, labels).item() > 5 * CERTAIN / 5 / 2  # of two masks with five cells


@pytest.mark.parametrize("kind", ["pyramid", "segformer", "unet"])
def test_the_importer_reads_the_network_as_a_mask_classifier(kind):
    backbone, image = Architecture(kind, 3).build().eval(), torch.rand(1, 3, 64, 96)
    head = MaskHead(features_of(backbone, image).shape[1], 3).eval()
    network = QueryNetwork(backbone, head)
    assert network(image).class_queries_logits.shape == (1, QUERIES, 4)
    logits, mass = MaskClassifier(network, None, None)(image)
    assert logits.shape == (1, 3, 16, 24)
    torch.testing.assert_close(log_mass_of(logits), mass.log().clamp(*LOG_MASS), atol=1e-4, rtol=0)


def test_log_mass_is_clipped_to_its_range():
    scores = torch.tensor([[[[0.2, 1e-6, 40]], [[0.3, 1e-6, 60]]]])
    found = log_mass_of(scores.log())[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([math.log(0.5), *LOG_MASS]))


def test_description_of_four_pixels():
    masses, shares = torch.tensor([0.2, 0.6, 1, 2]), torch.tensor([0.6, 0.7, 0.8, 0.9])
    logits = (torch.stack([shares, 1 - shares]) * masses).log()[:, None]
    labels = torch.tensor([[1, 0, 1, 0]])  # the first and the third pixel are wrong
    part = StoredPart(2, [LabelledImage(logits, labels)], [0])
    (result,) = evaluate_calibrators(part, [Identity(2)], FitContext())
    # The wrong pixel has less mass than the right one in three of four pairs, as with confidence.
    assert description(part, result.evaluation.result()) == (
        "1 images, accuracy 0.500, mass 0.95 on average and below 0.5 at 25.00% of pixels; "
        "AUROC of errors 0.750 by confidence, 0.750 by mass."
    )


@pytest.fixture(scope="module")
def part():
    """Make maps whose mass differs between pixels and is mostly within its range."""
    images = [image._replace(logits=image.logits - 6) for image in synthetic_set(3, 18).images]
    return StoredPart(3, images, range(len(images)))


def test_without_its_uses_the_mass_changes_nothing(part):
    fitted = []
    for calibrator in (Contextual(3), WithMass(3, Use())):
        calibrator.fit(part, FitContext(seed=1))
        fitted.append(calibrator.eval()(part.images[0].logits[None]))
    torch.testing.assert_close(fitted[0], fitted[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name, use in VARIANTS.items() if use != Use()])
def test_mass_reaches_detector_and_score(part, name):
    variant = WithMass(3, VARIANTS[name])
    variant.fit(part, FitContext())
    variant.detector.outward.fill_(1)  # trained, whatever this fit found
    logits = part.images[0].logits[None]
    before, after = variant(logits), variant(logits - 3)  # the same softmax, 1/20 of the mass
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_third_of_a_small_fit_is_for_development(part):
    found = development({"fit": part})
    assert [len(found[name]) for name in ("fit", "dev")] == [12, 6]
    assert {id(image) for image in found["fit"].images}.isdisjoint(
        id(image) for image in found["dev"].images
    )
