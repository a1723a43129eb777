"""Test that label maps belong to their images and name the classes as the model does.

A calibrator lowers the confidence of a model that disagrees with the labels, and so it is better by
the labels even where these were mixed up. Two tests tell mixed-up labels from a model that errs:

- The mutual information of predicted and given labels, of pixels, is higher for an image's own
  label map than for those of other images. It holds for a model that is wrong in a systematic way.
- No exchange of two classes in the label maps raises the accuracy of the model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.calibration.dataset import IGNORE, ValidationSet
from app.calibration.metrics.intervals import sign_flip_p_value

ALPHA = 0.025
OTHERS = 8  # label maps of other images that an image's own is compared with

Labels = NDArray[np.int16]


def find_disagreement(data: ValidationSet, seed: int) -> str | None:
    """Return the reason why labels do not belong to the images of a set; None without one.

    Only for sets of maps. With fewer than six images nothing can be shown, which is a reason.
    """
    predicted, given = [], []
    for index in range(len(data)):
        image = data[index]
        predicted.append(image.logits.argmax(0).numpy().astype(np.int16))
        given.append(image.labels.numpy().astype(np.int16))
    p_value = _mixed_up(predicted, given, data.num_classes, seed)
    if p_value > ALPHA:
        return (
            f"expected label maps that agree with predictions on their own images more than on "
            f"others, got p {p_value:.2g} over {len(data)} images"
        )
    return _exchanged(predicted, given, data.num_classes, seed)


def _mixed_up(
    predicted: Sequence[Labels], given: Sequence[Labels], num_classes: int, seed: int
) -> float:
    """Compute the p-value of "other images' label maps inform as much on the predictions"."""
    count = len(predicted)
    differences = []
    for index, labels in enumerate(predicted):
        own = _mutual_information(_confusion(labels, given[index], num_classes))
        others = [
            _mutual_information(
                _confusion(labels, _resized(given[(index + step) % count], labels), num_classes)
            )
            for step in range(1, min(count, OTHERS + 1))
        ]
        differences.append(float(np.mean(others)) - own if others else 0.0)
    return sign_flip_p_value(differences, seed)


def _exchanged(
    predicted: Sequence[Labels], given: Sequence[Labels], num_classes: int, seed: int
) -> str | None:
    """Return a sentence where exchanging two classes raises the accuracy significantly.

    Every other image chooses the classes, and the rest test them, since of many pairs of classes
    some seem to gain.
    """
    counts = np.stack(
        [_confusion(p, g, num_classes) for p, g in zip(predicted, given, strict=True)]
    )
    shares = counts / np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1)
    right = shares.diagonal(axis1=1, axis2=2)
    # Of each image and pair of classes, the accuracy after the exchange minus the one before it.
    gains = shares + shares.transpose(0, 2, 1) - right[:, :, None] - right[:, None, :]
    mean = gains[::2].mean(axis=0)
    first, second = np.unravel_index(int(mean.argmax()), mean.shape)
    gain = gains[1::2, first, second]
    if mean[first, second] <= 0 or sign_flip_p_value(list(-gain), seed) > ALPHA:
        return None
    return (
        f"expected classes as the model has them, got labels that agree better with the classes "
        f"{first} and {second} exchanged (accuracy {gain.mean():+.3f})"
    )


def _confusion(predicted: Labels, given: Labels, num_classes: int) -> NDArray[np.float64]:
    """Count pixels by given and by predicted class, without unlabelled ones."""
    known = given != IGNORE
    pairs = given[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, -1).astype(float)


def _mutual_information(counts: NDArray[np.float64]) -> float:
    """Compute the mutual information of rows and columns of counts, in nats; 0 without any."""
    joint = counts / max(counts.sum(), 1.0)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / independent[some])).sum())


def _resized(labels: Labels, like: Labels) -> Labels:
    """Sample a label map at the grid of another one."""
    rows, columns = (
        np.arange(length) * size // length
        for length, size in zip(like.shape, labels.shape, strict=True)
    )
    resized: Labels = labels[np.ix_(rows, columns)]
    return resized
