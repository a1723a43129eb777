"""Train a network on two CPU cores: `python -m training.train --data camvid --out runs/NAME`.

The learning rate warms up, stays constant, and falls linearly to zero over the last `--cooldown`
epochs, so that a run can be prolonged or shortened from its checkpoint. The exponential moving
average of the weights is evaluated and saved.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from training.data import SETS, VOID, Augmentation, AugmentedFrames, Frame
from training.networks import KINDS, MULTIPLE_OF, Architecture, open_network, save_network

AUGMENTATIONS = {
    "none": (Augmentation.none(),),
    "basic": (Augmentation.basic(),),
    "strong": (Augmentation(),),
    "mixed": (Augmentation.basic(), Augmentation()),  # one of the two for each image
}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run; `rate` is the highest learning rate, durations are in epochs."""

    epochs: int = 120
    cooldown: int = 60
    warmup: int = 3
    batch: int = 8
    rate: float = 2e-3
    weight_decay: float = 0.03
    average: float = 0.998  # decay of the weights' moving average, per step
    boundary: float = 1.0  # extra weight of pixels within two of a label boundary
    balance: float = 0.5  # power of the inverse class frequency; 0 = plain cross-entropy
    seed: int = 0


def class_weights(frames: list[Frame], num_classes: int, power: float) -> Tensor:
    """Compute class weights (median frequency / frequency)^power, float32 [K].

    The ratio is clipped to 0.3..5; the mean over pixels is 1.
    """
    counts = np.zeros(num_classes)
    for frame in frames:
        counts += np.bincount(frame.label.ravel(), minlength=VOID + 1)[:num_classes]
    frequency = np.maximum(counts / counts.sum(), 1e-4)
    weights = np.clip((np.median(frequency) / frequency) ** power, 0.3, 5.0)
    return torch.tensor(weights / (weights * frequency).sum(), dtype=torch.float32)


def loss_of(logits: Tensor, label: Tensor, weights: Tensor, boundary: float) -> Tensor:
    """Compute cross-entropy at label resolution, weighted by class and at label boundaries.

    `logits` [N,K,h,w], `label` int64 [N,H,W]; `boundary` is the extra weight within two pixels of a
    label boundary.
    """
    upsampled = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear")
    losses = F.cross_entropy(upsampled, label, weight=weights, ignore_index=VOID, reduction="none")
    value = label.float().unsqueeze(1)
    highest = F.max_pool2d(value, 5, 1, 2)
    lowest = -F.max_pool2d(-value, 5, 1, 2)
    near = (highest != lowest).squeeze(1).float()
    weighted: Tensor = (losses * (1 + boundary * near)).sum()
    valid = (label != VOID).float() * (1 + boundary * near)
    return weighted / valid.sum().clamp(min=1)


@torch.inference_mode()
def confusion(net: nn.Module, frames: list[Frame], num_classes: int) -> np.ndarray:
    """Count labels (rows) against predictions (columns) over whole frames, int64 [K,K]."""
    table = np.zeros((num_classes, num_classes), np.int64)
    for image, label in frames:
        x = padded_image(image).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x)
        fine = F.interpolate(logits.float(), size=x.shape[-2:], mode="bilinear")
        guess = fine.argmax(1)[0, : label.shape[0], : label.shape[1]]
        keep = label != VOID
        pairs = label[keep].astype(np.int64) * num_classes + guess.numpy()[keep]
        table += np.bincount(pairs, minlength=table.size).reshape(table.shape)
    return table


def padded_image(image: np.ndarray) -> Tensor:
    """Convert an image uint8 [H,W,3] to [1,3,H',W'] in 0..1, padded to multiples of 32."""
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div(255)[None]
    height, width = image.shape[:2]
    padding = (0, -width % MULTIPLE_OF, 0, -height % MULTIPLE_OF)
    return F.pad(planes, padding, mode="replicate")


def iou(table: np.ndarray) -> np.ndarray:
    """Compute intersection over union per class, float [K]; NaN for classes that never occur."""
    hit = np.diag(table)
    union = table.sum(0) + table.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Return the learning rate at a (fractional) epoch: warm-up, constant, linear decay."""
    warm = min(1.0, (epoch + 0.05) / recipe.warmup)
    cool = min(1.0, (recipe.epochs - epoch) / recipe.cooldown)
    return recipe.rate * warm * max(cool, 0.0)


def channels_last(net: nn.Module) -> nn.Module:
    """Convert the convolutions to channels-last, which is faster on the CPU; in place."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


class Run:
    """Train one network; an interrupted run resumes from its checkpoint."""

    def __init__(
        self, recipe: Recipe, architecture: Architecture, weights: Tensor, out: Path
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.weights, self.out = recipe, weights, out
        self.net = channels_last(architecture.build())
        self.averaged = copy.deepcopy(self.net)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.rate,
        )
        self.epoch = self.step = 0

    def save(self) -> None:
        """Replace the checkpoint `last.pt` atomically."""
        state = {
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
        }
        torch.save(state, self.out / "last.tmp")
        (self.out / "last.tmp").replace(self.out / "last.pt")

    def resume(self, path: Path) -> None:
        """Load weights, optimiser state, epoch and step from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.step = state["epoch"], state["step"]

    def start_from(self, path: Path) -> None:
        """Load the averaged weights of an earlier run as initial weights."""
        state = open_network(path).state_dict()
        self.net.load_state_dict(state)
        self.averaged.load_state_dict(state)

    def train_epoch(self, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
        """Train on each batch once; return the mean loss."""
        self.net.train()
        total = 0.0
        for index, (image, label) in enumerate(loader):
            rate = learning_rate(self.recipe, self.epoch + index / len(loader))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            x = image.float().div_(255).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.net(x)
            loss = loss_of(logits, label.long(), self.weights, self.recipe.boundary)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
            self.optimiser.step()
            self.step += 1
            self.average_weights()
            total += loss.item()
        self.epoch += 1
        return total / len(loader)

    @torch.no_grad()
    def average_weights(self) -> None:
        """Update the moving average of the weights, with a smaller decay in the first steps."""
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        net_state = self.net.state_dict()
        for name, value in self.averaged.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(net_state[name], 1 - decay)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", choices=list(SETS), default="camvid")
    parser.add_argument("--folder", type=Path, help="of the data (default: CAMVID_DIR and so on)")
    parser.add_argument("--network", choices=KINDS, default="pyramid")
    parser.add_argument("--groups", default="", help="train on these groups only, comma-separated")
    parser.add_argument("--measure", default="", help="groups of train to measure on as well")
    parser.add_argument("--augment", choices=list(AUGMENTATIONS), default="strong")
    parser.add_argument("--crop", type=int, nargs=2, default=Augmentation.crop)
    parser.add_argument("--every", type=int, default=10, help="epochs between evaluations")
    parser.add_argument("--resume", type=Path, help="checkpoint to resume from")
    parser.add_argument("--start", type=Path, help="initial weights of a new run")
    parser.add_argument("--widths", help="the backbone's four widths, comma-separated")
    for name in ("epochs", "cooldown", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    for name in ("rate", "weight_decay", "average", "boundary", "balance"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Recipe, name))
    return parser.parse_args()


def main() -> None:
    """Train; write a JSON line for each epoch, `last.pt` and `averaged.pt`."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        **{name: getattr(args, name) for name in asdict(Recipe()) if hasattr(args, name)}
    )

    data = SETS[args.data]
    root, classes = data.folder(args.folder), len(data.classes)
    groups = tuple(name for name in args.groups.split(",") if name)
    frames = data.frames(root, "train", groups)
    held_out = {"val": data.frames(root, "val")}
    for group in filter(None, args.measure.split(",")):
        held_out[group] = data.frames(root, "train", (group,))
    augmentations = [
        replace(augmentation, crop=tuple(args.crop)) for augmentation in AUGMENTATIONS[args.augment]
    ]
    dataset = AugmentedFrames(frames, augmentations, data.things, recipe.seed)

    architecture = Architecture(args.network, classes)
    if args.widths:
        first, second, third, fourth = (int(width) for width in args.widths.split(","))
        architecture = replace(architecture, widths=(first, second, third, fourth))
    run = Run(recipe, architecture, class_weights(frames, classes, recipe.balance), args.out)
    if args.start:
        run.start_from(args.start)
    if args.resume:
        run.resume(args.resume)
    start = time.monotonic()
    while run.epoch < recipe.epochs:
        dataset.epoch = run.epoch
        order = torch.Generator().manual_seed(recipe.seed * 100003 + run.epoch)
        loader = DataLoader(
            dataset, recipe.batch, shuffle=True, num_workers=1, drop_last=True,
            generator=order, prefetch_factor=4,
        )  # fmt: skip
        line: dict[str, object] = {
            "epoch": run.epoch + 1,
            "loss": round(run.train_epoch(loader), 4),
        }
        if run.epoch % args.every == 0 or run.epoch == recipe.epochs:
            run.averaged.eval()
            for name, subset in held_out.items():
                ious = iou(confusion(run.averaged, subset, classes))
                line[name] = {"miou": round(float(np.nanmean(ious)), 4),
                              "iou": [round(float(v), 3) for v in ious]}  # fmt: skip
            run.save()
        line["minutes"] = round((time.monotonic() - start) / 60, 2)
        with (args.out / "log.jsonl").open("a") as log:
            print(json.dumps(line), file=log)
    save_network(architecture, run.averaged, args.out / "averaged.pt")


if __name__ == "__main__":
    main()
