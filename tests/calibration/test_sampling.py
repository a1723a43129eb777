import pytest
import torch

from app.calibration.base import FitContext
from app.calibration.dataset import IGNORE, InMemory, LabelledImage, labelled_pixels
from app.calibration.sampling import PIXELS_OF_AN_IMAGE, Sample, gather

SEEDED = FitContext(seed=1)


def image(pixels, first):
    """Three classes; the first logit numbers the pixel, and the label is that number mod 3."""
    numbers = torch.arange(first, first + pixels)
    logits = torch.stack([numbers.float(), torch.zeros(pixels), torch.ones(pixels)])
    return LabelledImage(logits.view(3, 1, pixels), (numbers % 3).view(1, pixels))


def numbers_of(data):
    return [[int(n) for n in logits[:, 0]] for logits, _ in map(labelled_pixels, data.images)]


def test_small_set_is_sampled_completely_by_image():
    data = InMemory(3, [image(5, 0), image(4, 100)])
    assert numbers_of(gather(data, SEEDED)) == [[0, 1, 2, 3, 4], [100, 101, 102, 103]]


def test_sample_of_a_large_image_has_distinct_pixels_with_their_labels():
    [kept] = gather(InMemory(3, [image(3 * PIXELS_OF_AN_IMAGE, 0)]), SEEDED).images
    logits, labels = labelled_pixels(kept)
    numbers = logits[:, 0].long()

    assert len(numbers.unique()) == len(numbers) == PIXELS_OF_AN_IMAGE
    assert torch.equal(labels, numbers % 3)
    assert abs(numbers.double().mean() / PIXELS_OF_AN_IMAGE - 1.5) < 0.1  # from the whole image


def test_budget_is_divided_equally_among_images():
    data = InMemory(3, [image(50, 0), image(50, 100)])
    assert [len(part) for part in numbers_of(gather(data, SEEDED, budget=60))] == [10, 10]


def test_unlabelled_pixels_and_images_are_skipped():
    unlabelled = image(4, 0)
    unlabelled.labels[:] = IGNORE
    half = image(4, 100)
    half.labels[0, :2] = IGNORE
    assert numbers_of(gather(InMemory(3, [unlabelled, half]), SEEDED)) == [[102, 103]]


def test_subsample_has_one_pixel_in_eight_with_its_label():
    logits, labels = torch.arange(16000.0).view(8000, 2), torch.arange(8000) % 2
    sample = Sample(logits, labels, torch.bincount(labels), complete=True)
    few = sample.subsampled(2)
    places = (few.logits[:, 0] / 2).long()
    assert len(places) == 1000
    assert (places.diff() > 0).all()
    assert torch.equal(few.labels, labels[places])
    assert torch.equal(few.logits, logits[places])
    assert not few.complete


def test_subsample_keeps_classes_at_regular_positions():
    labels = (torch.arange(16000) % 8 == 3).long()
    sample = Sample(torch.zeros(16000, 2), labels, torch.bincount(labels), complete=True)
    assert torch.bincount(sample.subsampled(2).labels).min() > 150


@pytest.mark.parametrize(
    ("parameters", "rare", "left"),
    [
        (1, 4000, 1000),  # one in eight
        (40, 4000, 2000),  # 2,000 pixels for 40 parameters
        (1, 150, 2666),  # 50 of the rarest class
        (100, 4000, 8000),  # 4,000 would be too few
        (1, 99, 8000),
        (1, 0, 8000),  # a class that the sample missed
    ],
)
def test_subsample_has_fifty_pixels_of_each_parameter_and_class(parameters, rare, left):
    labels = (torch.arange(8000) >= rare).long()
    counts = torch.tensor([max(rare, 1), 8000 - rare])
    few = Sample(torch.zeros(8000, 2), labels, counts, complete=False).subsampled(parameters)
    assert len(few.labels) == left
