"""Train a small mask classifier on a frozen backbone of the study.

No mask classifier for the study's images is published. This one has the form and the loss of
MaskFormer (Cheng, Schwing and Kirillov, "Per-pixel classification is not all you need", NeurIPS
2021): queries attend to the last features of the backbone and each predicts a class or "no
object" and a mask; queries and classes of an image are matched at the least cost. Features of the
training images are computed once, so that a head is trained in minutes on one core.
"""

import math
import sys
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from app.conversion.mask_classifiers import MaskClassifier
from benchmarks.paper.backbones import Backbone
from benchmarks.paper.data import CELL, labels_of, stored_parts
from training.data import SETS, VOID, Frame
from training.networks import open_network
from training.train import padded_image

QUERIES, WIDTH, HEADS, LAYERS = 30, 64, 4, 2
POOL = 8  # cells to a side of the means that queries attend to
CLASS_COST, MASK_COST, DICE_COST = 2.0, 5.0, 5.0  # Mask2Former's
NO_OBJECT = 0.1  # weight of "no object" in the cross-entropy
CROP = (60, 60)  # cells; the smallest training image has 61
BATCH, STEPS, RATE, WEIGHT_DECAY = 8, 800, 1e-3, 0.01
WARM_UP, REPORT = 50, 50  # steps
SUFFIX = "-mask"  # of a backbone's name


class MaskOutputs(NamedTuple):
    """Logits of classes [N,Q,K+1], "no object" last, and of masks [N,Q,h,w]."""

    class_queries_logits: Tensor
    masks_queries_logits: Tensor


class MaskHead(nn.Module):
    """Compute the queries' classes and masks from features [N,C,h,w]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pixels = nn.Sequential(
            nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, WIDTH, 1), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1),
        )  # fmt: skip
        self.memory = nn.Linear(WIDTH, WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, 4 * WIDTH, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(WIDTH))
        self.classes = nn.Linear(WIDTH, num_classes + 1)
        self.masks = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, features: Tensor) -> MaskOutputs:
        """Compute classes and masks of a batch; see `MaskOutputs`."""
        pixels = self.pixels(features)
        means = F.avg_pool2d(pixels, POOL, ceil_mode=True)
        memory = self.memory(means.flatten(2).transpose(1, 2))
        queries = self.decoder(self.queries.expand(len(means), -1, -1), memory)
        masks = torch.einsum("nqc,nchw->nqhw", self.masks(queries), pixels)
        return MaskOutputs(self.classes(queries), masks)


class QueryNetwork(nn.Module):
    """A frozen backbone and its head, called as transformers' mask classifiers are."""

    def __init__(self, backbone: nn.Module, head: MaskHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixel_values: Tensor) -> MaskOutputs:
        """Map [N,3,H,W] to classes and masks on the grid of cells [H/4,W/4]."""
        outputs: MaskOutputs = self.head(features_of(self.backbone, pixel_values))
        return outputs


class Logits(nn.Module):
    """The logits alone of the importer's form of a mask classifier."""

    def __init__(self, network: QueryNetwork) -> None:
        super().__init__()
        self.classifier = MaskClassifier(network, None, None)

    def forward(self, image: Tensor) -> Tensor:
        """Map [N,3,H,W] to log max(S, 1e-6), [N,K,h,w]."""
        logits: Tensor = self.classifier(image)[0]
        return logits


@torch.no_grad()
def features_of(backbone: nn.Module, image: Tensor) -> Tensor:
    """Compute the input of the backbone's classifier at the centres of cells, [N,C,H/4,W/4]."""
    found: list[Tensor] = []
    hook = backbone.classifier.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _module, inputs: found.append(inputs[0])
    )
    backbone(image)
    hook.remove()
    step = CELL * found[0].shape[-1] // image.shape[-1]
    return found[0][..., step // 2 :: step, step // 2 :: step]


@dataclass(frozen=True)
class Example:
    """One training image: features float16 [C,h,w] and labels int64 [h,w] of its cells."""

    features: Tensor
    labels: Tensor

    def cropped(self, generator: torch.Generator) -> "Example":
        """Return a random window, mirrored in half of all cases."""
        window = []
        for side, length in zip(self.labels.shape, CROP, strict=True):
            start = int(torch.randint(side - length + 1, (), generator=generator))
            window.append(slice(start, start + length))
        features, labels = self.features[:, window[0], window[1]], self.labels[window[0], window[1]]
        if torch.rand((), generator=generator) < 0.5:
            features, labels = features.flip(-1), labels.flip(-1)
        return Example(features, labels)


def examples(backbone: nn.Module, frames: Sequence[Frame]) -> list[Example]:
    """Compute the features of training images once."""
    found = []
    for frame in frames:
        labels = torch.from_numpy(labels_of(frame)).long()
        features = features_of(backbone, padded_image(frame.image))[0]
        kept = features[:, : labels.shape[0], : labels.shape[1]]
        found.append(Example(kept.half(), labels))
    return found


def loss_of(outputs: MaskOutputs, labels: Tensor) -> Tensor:
    """Compute the loss of a batch: cross-entropy of classes, and of masks with their Dice loss.

    `labels` int64 [N,h,w]; void cells have no part in it.
    """
    total = outputs.class_queries_logits.new_zeros(())
    for scores, masks, label in zip(*outputs, labels, strict=True):
        kept = label != VOID
        classes = label[kept].unique()
        targets = (label[kept] == classes[:, None]).float()
        pairs = masks[:, kept]
        rows, columns = matched(scores, pairs, classes, targets)
        assigned = torch.full((len(scores),), scores.shape[1] - 1)
        assigned[rows] = classes[columns]
        weights = torch.ones(scores.shape[1])
        weights[-1] = NO_OBJECT
        of_masks, of_dice = mask_costs(pairs[rows], targets[columns])
        total = total + CLASS_COST * F.cross_entropy(scores, assigned, weights)
        total = total + MASK_COST * of_masks.diag().mean() + DICE_COST * of_dice.diag().mean()
    return total / len(labels)


@torch.no_grad()
def matched(
    scores: Tensor, masks: Tensor, classes: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Match each class of an image to a query at the least total cost: indices of both, int64."""
    of_masks, of_dice = mask_costs(masks, targets)
    cost = MASK_COST * of_masks + DICE_COST * of_dice
    cost -= CLASS_COST * scores.softmax(dim=1)[:, classes]
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def mask_costs(masks: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute binary cross-entropy and Dice loss [Q,T] of mask logits [Q,M] and masks [T,M]."""
    products = masks @ targets.T
    cross_entropy = F.softplus(masks).mean(dim=1, keepdim=True) - products / masks.shape[1]
    shares = masks.sigmoid()
    sums = shares.sum(dim=1, keepdim=True) + targets.sum(dim=1)
    return cross_entropy, 1 - (2 * shares @ targets.T + 1) / (sums + 1)


def train(head: MaskHead, images: Sequence[Example], seed: int = 0) -> None:
    """Train a head by AdamW, the rate falling along half a cosine after a short warm-up."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(head.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    head.train()
    began, losses = time.monotonic(), []
    for step in range(STEPS):
        chosen = torch.randperm(len(images), generator=generator)[:BATCH].tolist()
        crops = [images[index].cropped(generator) for index in chosen]
        features = torch.stack([crop.features for crop in crops]).float()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = MaskOutputs(*(part.float() for part in head(features)))
        loss = loss_of(outputs, torch.stack([crop.labels for crop in crops]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % REPORT == 0:
            mean, minutes = sum(losses) / len(losses), (time.monotonic() - began) / 60
            print(f"step {step + 1}/{STEPS} loss {mean:.3f} {minutes:.1f} min", file=sys.stderr)
            losses.clear()
    head.eval()


def factor(step: int) -> float:
    """Return the factor of the learning rate at a step: warm-up, then half a cosine to 0."""
    return min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / STEPS)) / 2)


def open_mask_classifier(name: str, runs: Path) -> Logits:
    """Open the mask classifier on a backbone, `RUNS/NAME-mask/head.pt`; train what is missing."""
    data = SETS[name.partition("-")[0]]
    backbone = open_network(runs / name / "averaged.pt")
    channels = features_of(backbone, torch.zeros(1, 3, 64, 64)).shape[1]
    torch.manual_seed(0)
    head = MaskHead(channels, len(data.classes)).eval()
    path = runs / f"{name}{SUFFIX}" / "head.pt"
    if path.is_file():
        head.load_state_dict(torch.load(path, weights_only=True))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The backbone of streets was trained on one of the drives.
        groups = ("0016E5",) if data.name == "camvid" else ()
        train(head, examples(backbone, data.frames(data.folder(), "train", groups)))
        torch.save(head.state_dict(), path)
    return Logits(QueryNetwork(backbone, head))


def mask_classifiers(
    names: Sequence[str], runs: Path, part_names: Container[str]
) -> Iterator[Backbone]:
    """Open or train the mask classifier on each backbone, with its logits on some of the parts."""
    for name in names:
        data, own = SETS[name.partition("-")[0]], f"{name}{SUFFIX}"
        network = open_mask_classifier(name, runs)
        cache = runs / "logits" / own
        yield Backbone(own, stored_parts(network, data, data.folder(), cache, part_names))
