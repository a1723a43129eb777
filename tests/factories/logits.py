"""Synthetic labelled logits, over-confident and with confused classes."""

import torch

from app.calibration.dataset import IGNORE, InMemory, LabelledImage, pixels
from app.calibration.methods.contextual.features import interpolated


def synthetic_set(num_classes, images=6, side=12, seed=0, sharpness=2.5):
    """Draw maps whose labels follow an affine map of the logits; 10 % are unlabelled.

    Their images are uninformative noise.
    """
    rng = torch.Generator().manual_seed(seed)
    confusion = torch.eye(num_classes) + 0.1 * torch.randn(num_classes, num_classes, generator=rng)
    bias = 0.5 * torch.randn(num_classes, 1, generator=rng)
    made = []
    for _ in range(images):
        truth = 2 * torch.randn(num_classes, side * side, generator=rng)
        labels = torch.multinomial((confusion @ truth + bias).softmax(0).T, 1, generator=rng)[:, 0]
        labels[torch.rand(side * side, generator=rng) < 0.1] = IGNORE
        logits = sharpness * truth + 2 * torch.randn(1, side * side, generator=rng)
        image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=rng)
        grid = num_classes, side, side
        made.append(LabelledImage(logits.view(grid), labels.view(side, side), image))
    return InMemory(num_classes, made)


def relabelled(data, change):
    """Replace the labels of a set by `change(logits, labels)`."""
    return InMemory(
        data.num_classes,
        [image._replace(labels=change(image.logits, image.labels)) for image in data.images],
    )


def nll(calibrator, data):
    """Compute the mean negative log-likelihood of the labelled pixels."""
    total = count = 0
    for image in data.images:
        labelled = image.labels != IGNORE
        with torch.no_grad():
            logs = calibrator.with_image(image.image)(image.logits[None])[0][:, labelled]
        total -= logs.gather(0, image.labels[labelled][None]).sum().item()
        count += int(labelled.sum())
    return total / count


def table(data):
    """Return all labelled pixels: logits [M,K] and labels [M]."""
    parts = list(pixels(data))
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])


def shift_of(calibrator, logits):
    """Compute a calibrator's log-odds shift on the grid of logits [K,h,w], float32 [h,w]."""
    shift = calibrator.log_odds_shift(logits)
    combined = torch.from_numpy(shift.combined()[0])
    return interpolated(combined[None, None], tuple(logits.shape[1:]), shift.stride)[0, 0]
