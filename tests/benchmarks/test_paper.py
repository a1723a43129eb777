"""The study: its parts do not overlap, and its statistics agree with published values."""

import numpy as np
import pytest
import torch
from PIL import Image

from app.calibration.base import FitContext
from benchmarks.paper.corruptions import KINDS, corrupted
from benchmarks.paper.cvpr_recipe import CvprSelective
from benchmarks.paper.data import Part, parts, read, save
from benchmarks.paper.tables import critical_difference
from tests.factories.logits import synthetic_set
from training.data import NUCLEI, VOID, Frame


def test_critical_difference_of_demsars_example():
    # Demsar (JMLR 2006), section 3.2.2: four classifiers on 14 data sets, q = 2.569.
    assert critical_difference(4, 14) == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_change_an_image_and_keep_its_shape(kind):
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    found = corrupted(image, kind)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert not np.array_equal(found, image)


@pytest.fixture
def nuclei(tmp_path):
    """Make a folder like the nuclei's, each image of one grey level of its own."""
    level = 0
    for part, count in (("val", 16), ("shift", 6)):
        for folder in (part, f"{part}annot"):
            (tmp_path / folder).mkdir()
        for index in range(count):
            image = Image.new("RGB", (16, 12), (level, level, level))
            image.save(tmp_path / part / f"{index:02}.png")
            Image.new("L", (16, 12), 1).save(tmp_path / f"{part}annot" / f"{index:02}.png")
            level += 5
    return tmp_path


def levels(part):
    return {int(frame.image[0, 0, 0]) for frame in part.frames}


def test_no_image_is_in_two_parts(nuclei):
    found = {part.name: part for part in parts(NUCLEI, nuclei)}
    disjoint = [levels(found[name]) for name in ("fit", "dev", "test", "dev shift", "shift")]
    assert [len(one) for one in disjoint] == [8, 4, 4, 3, 3]
    assert len(set.union(*disjoint)) == 22


def test_corrupted_copies_belong_to_the_unit_of_their_image(nuclei):
    found = {part.name: part for part in parts(NUCLEI, nuclei)}
    test, copies = found["test"], found["corrupted"]
    assert list(copies.units) == list(test.units) * len(KINDS)
    assert len(copies.frames) == len(KINDS) * len(test.frames)


def test_cells_have_the_logits_and_the_label_of_their_centre(tmp_path):
    class Coordinates(torch.nn.Module):
        def forward(self, x):
            return x[:, :2]

    image = np.zeros((12, 20, 3), np.uint8)
    image[6, 10] = (255, 0, 0)  # the centre of the cell in row 1, column 2
    label = np.full((12, 20), VOID, np.uint8)
    label[6, 10] = 1
    save(Coordinates(), Part("one", [Frame(image, label)], [0]), tmp_path / "one.npz")
    (stored,) = read(tmp_path / "one.npz").images
    assert stored.logits.shape == (2, 3, 5)
    assert stored.logits[0].nonzero().tolist() == [[1, 2]]
    assert (stored.labels == 1).nonzero().tolist() == [[1, 2]]
    assert (stored.labels == -1).sum() == 14


def test_the_cvpr_recipe_has_two_temperatures():
    data = synthetic_set(4)
    calibrator = CvprSelective(4)
    calibrator.fit(data, FitContext())
    logits = data[0].logits[None]
    log_probabilities = calibrator.eval()(logits)
    either = [(logits / t).log_softmax(1) for t in (1.0, 2.0)]
    chosen = [torch.isclose(log_probabilities, one).all(dim=1) for one in either]
    assert torch.logical_or(*chosen).all()
