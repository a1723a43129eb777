"""Mixed-up labels are distinguished from a model that errs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from app.calibration.dataset import IGNORE, LabelledImage
from app.calibration.label_agreement import find_disagreement


@dataclass
class Maps:
    """Label maps, and predictions that are wrong at a share of the pixels."""

    given: list[np.ndarray]
    predicted: list[np.ndarray]
    num_classes: int = 3

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        logits = torch.nn.functional.one_hot(torch.from_numpy(self.predicted[index]), 3)
        labels = torch.from_numpy(self.given[index])
        return LabelledImage(logits.permute(2, 0, 1).float(), labels)


def scenes(count=12, wrong=0.3, seed=0):
    """Build maps of blocks of classes, of two sizes; predictions are wrong at some pixels."""
    rng = np.random.default_rng(seed)
    given, predicted = [], []
    for index in range(count):
        size = (4, 4 + index % 2)
        labels = rng.choice(3, size, p=(0.6, 0.3, 0.1)).repeat(8, 0).repeat(8, 1)
        errs = rng.random(labels.shape) < wrong
        predicted.append(np.where(errs, rng.integers(0, 3, labels.shape), labels))
        given.append(np.where(rng.random(labels.shape) < 0.1, IGNORE, labels))
    return Maps(given, predicted)


def test_labels_of_a_model_that_errs_agree():
    assert find_disagreement(scenes(wrong=0.7), 0) is None


def test_labels_agree_with_a_model_that_is_wrong_in_a_systematic_way():
    maps = scenes()
    # Class 1 is predicted as 0: accuracy is low, but no exchange of classes raises it.
    maps.predicted = [np.where(labels == 1, 0, labels) for labels in maps.predicted]
    assert find_disagreement(maps, 0) is None


def test_label_maps_of_other_images_do_not_agree():
    maps = scenes()
    maps.given = [maps.given[(index + 2) % 12] for index in range(12)]
    assert "on their own images" in str(find_disagreement(maps, 0))


def test_label_maps_with_shuffled_pixels_do_not_agree():
    maps = scenes()
    rng = np.random.default_rng(1)
    maps.given = [rng.permutation(labels.ravel()).reshape(labels.shape) for labels in maps.given]
    assert "on their own images" in str(find_disagreement(maps, 0))


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_permuted_classes_do_not_agree(order):
    maps = scenes()
    maps.given = [
        np.where(labels == IGNORE, IGNORE, np.array(order)[labels]) for labels in maps.given
    ]
    assert "exchanged" in str(find_disagreement(maps, 0))


def test_fewer_than_six_images_show_nothing():
    maps = scenes(5)
    assert "got p 0.031 over 5 images" in str(find_disagreement(maps, 0))
