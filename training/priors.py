"""Correct the classifier's biases for the class frequencies of real frames.

Class weights, boundary weights and pasted things change the class frequencies that
the network is trained on. One offset per class, chosen for mean IoU on whole frames without
augmentation, corrects for that at no cost at run time.

`python -m training.priors runs/NAME/averaged.pt runs/NAME/balanced.pt`
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data import CAMVID, VOID, Frame
from training.export import load
from training.networks import Architecture, save_network
from training.networks.pyramid import PyramidNet
from training.train import iou

CLASSES = CAMVID.classes

STEPS = (0.6, 0.3, 0.15)
ROUNDS = 2
LIMIT = 1.2  # larger offsets over-fit the frames they are chosen on


class PixelSample(NamedTuple):
    """Every second pixel of frames each way: logits float16 [N,K,h,w], labels int64 [N,h,w]."""

    logits: Tensor
    labels: Tensor


@torch.inference_mode()
def sample_pixels(net: PyramidNet, frames: Sequence[Frame]) -> PixelSample:
    """Run the network on whole frames and subsample its logits and their labels."""
    logits, labels = [], []
    for image, label in frames:
        x = torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div(255)[None]
        with torch.autocast("cpu", torch.bfloat16):
            coarse = net(x)
        fine = F.interpolate(coarse.float(), size=label.shape, mode="bilinear")[0]
        logits.append(fine[:, ::2, ::2].half())
        labels.append(torch.from_numpy(label[::2, ::2].astype(np.int64)))
    return PixelSample(torch.stack(logits), torch.stack(labels))


def mean_iou(sample: PixelSample, offsets: Tensor) -> float:
    """Compute mean IoU in 0..1 with offsets float [K] added to the logits."""
    classes = len(CLASSES)
    table = torch.zeros(classes * classes, dtype=torch.long)
    for logits, labels in zip(*sample, strict=True):
        guess = (logits.float() + offsets[:, None, None]).argmax(0)
        keep = labels != VOID
        table += torch.bincount(labels[keep] * classes + guess[keep], minlength=len(table))
    return float(np.nanmean(iou(table.reshape(classes, classes).numpy())))


def choose_offsets(groups: Mapping[str, PixelSample]) -> Tensor:
    """Maximise the mean over groups of mean IoU by coordinate ascent; float [K]."""

    def quality(offsets: Tensor) -> float:
        return float(np.mean([mean_iou(sample, offsets) for sample in groups.values()]))

    offsets = torch.zeros(len(CLASSES))
    best = quality(offsets)
    for step in STEPS:
        for _ in range(ROUNDS):
            for index in range(len(CLASSES)):
                for move in (-step, step):
                    trial = offsets.clone()
                    trial[index] = (trial[index] + move).clamp(-LIMIT, LIMIT)
                    if (value := quality(trial)) > best:
                        best, offsets = value, trial
    return offsets


def shift(net: PyramidNet, offsets: Tensor) -> None:
    """Add offsets [K] to the classifier's bias, whose four outputs of a class are adjacent."""
    bias = net.classifier.bias
    assert bias is not None  # noqa: S101 - the network is built with one
    with torch.no_grad():
        bias += offsets.repeat_interleave(4)


def main() -> None:
    """Choose offsets on val and on the training groups without val frames, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--camvid", type=Path, help="CamVid's folder (default: CAMVID_DIR)")
    args = parser.parse_args()
    root, net = CAMVID.folder(args.camvid), load(args.weights)
    groups = {"val": sample_pixels(net, CAMVID.frames(root, "val")[::2])}
    for group in ("0006R0", "0001TP"):
        frames = CAMVID.frames(root, "train", (group,))
        groups[group] = sample_pixels(net, frames[::3])
    offsets = choose_offsets(groups)
    for name, sample in groups.items():
        plain = mean_iou(sample, torch.zeros(len(CLASSES)))
        print(f"{name}: mIoU {plain:.4f} -> {mean_iou(sample, offsets):.4f}")
    print("offsets", dict(zip(CLASSES, [round(float(o), 2) for o in offsets], strict=True)))
    shift(net, offsets)
    architecture = Architecture("pyramid", net.shape.num_classes, net.shape.widths)
    save_network(architecture, net, args.out)


if __name__ == "__main__":
    main()
