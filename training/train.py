"""Train a `PyramidNet` on two CPU cores: `python -m training.train --out runs/NAME --epochs N`.

The learning rate warms up, stays, and falls linearly to zero over the last `--cooldown` epochs,
so that a run can be prolonged or brought in early from its checkpoint. What is judged and kept
is the exponential moving average of the weights.
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

from training.data import (
    CLASSES,
    VOID,
    Augmentation,
    Frame,
    StreetFrames,
    camvid_dir,
    load_frames,
)
from training.network import NetworkShape, PyramidNet

AUGMENTATIONS = {
    "none": (Augmentation.none(),),
    "basic": (Augmentation.basic(),),
    "strong": (Augmentation(),),
    "mixed": (Augmentation.basic(), Augmentation()),  # one or the other, image by image
}


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on beside the data."""

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


def class_weights(frames: list[Frame], power: float) -> Tensor:
    """Weigh classes by (median frequency / frequency)^power, [K], mean 1 over pixels."""
    counts = np.zeros(len(CLASSES))
    for frame in frames:
        counts += np.bincount(frame.label.ravel(), minlength=VOID + 1)[: len(CLASSES)]
    frequency = np.maximum(counts / counts.sum(), 1e-4)
    weights = np.clip((np.median(frequency) / frequency) ** power, 0.3, 5.0)
    return torch.tensor(weights / (weights * frequency).sum(), dtype=torch.float32)


def loss_of(logits: Tensor, label: Tensor, weights: Tensor, boundary: float) -> Tensor:
    """Cross-entropy at label resolution, weighted by class and nearness to a boundary."""
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
def confusion(net: nn.Module, frames: list[Frame]) -> np.ndarray:
    """Count label against prediction over whole frames: int64 [K,K], rows are labels."""
    table = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for image, label in frames:
        x = torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div(255).unsqueeze(0)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x)
        guess = F.interpolate(logits.float(), size=label.shape, mode="bilinear").argmax(1)[0]
        keep = label != VOID
        pairs = label[keep].astype(np.int64) * len(CLASSES) + guess.numpy()[keep]
        table += np.bincount(pairs, minlength=table.size).reshape(table.shape)
    return table


def iou(table: np.ndarray) -> np.ndarray:
    """Intersection over union per class, float [K]; NaN for classes that never occur."""
    hit = np.diag(table)
    union = table.sum(0) + table.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """Warm up, hold, cool down; `epoch` may be fractional."""
    warm = min(1.0, (epoch + 0.05) / recipe.warmup)
    cool = min(1.0, (recipe.epochs - epoch) / recipe.cooldown)
    return recipe.rate * warm * max(cool, 0.0)


def channels_last(net: PyramidNet) -> PyramidNet:
    """Lay the convolutions out the way the CPU's kernels want them."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


class Run:
    """One training run with its checkpoint; a run that was cut off goes on where it stood."""

    def __init__(self, recipe: Recipe, shape: NetworkShape, weights: Tensor, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.weights, self.out = recipe, weights, out
        self.net = channels_last(PyramidNet(shape))
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
        """Replace the checkpoint in one step."""
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
        """Take weights, optimiser and position from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.step = state["epoch"], state["step"]

    def start_from(self, path: Path) -> None:
        """Take averaged weights of an earlier run as the first weights of this one."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state)
        self.averaged.load_state_dict(state)

    def train_epoch(self, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
        """Pass once over the data and return the mean loss."""
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
        """Move the average towards the weights, quickly at first."""
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        net_state = self.net.state_dict()
        for name, value in self.averaged.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(net_state[name], 1 - decay)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--camvid", help="CamVid's folder (default: CAMVID_DIR)")
    parser.add_argument("--rendered", type=Path, help="a folder made by training.scenes")
    parser.add_argument("--drives", default="", help="train on these drives only, comma-separated")
    parser.add_argument("--augment", choices=list(AUGMENTATIONS), default="strong")
    parser.add_argument("--crop", type=int, nargs=2, default=Augmentation.crop)
    parser.add_argument("--every", type=int, default=10, help="epochs between evaluations")
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--start", type=Path, help="weights to start a new run from")
    parser.add_argument("--widths", help="the backbone's four widths, comma-separated")
    for name in ("epochs", "cooldown", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    for name in ("rate", "weight_decay", "average", "boundary", "balance"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Recipe, name))
    return parser.parse_args()


def main() -> None:
    """Train, log a JSON line an epoch, and keep `last.pt` and `averaged.pt`."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        **{name: getattr(args, name) for name in asdict(Recipe()) if hasattr(args, name)}
    )

    root = camvid_dir(args.camvid)
    drives = tuple(d for d in args.drives.split(",") if d)
    everything = load_frames(root / "train", root / "trainannot")
    frames = load_frames(root / "train", root / "trainannot", drives)
    held = {"val": load_frames(root / "val", root / "valannot")}
    for drive in ("0016E5", "0006R0", "0001TP"):
        if drives and drive not in drives:
            held[drive] = load_frames(root / "train", root / "trainannot", (drive,))
    rendered = (
        load_frames(args.rendered / "images", args.rendered / "labels") if args.rendered else []
    )
    augmentations = [replace(how, crop=tuple(args.crop)) for how in AUGMENTATIONS[args.augment]]
    dataset = StreetFrames(frames, rendered, augmentations, recipe.seed)

    shape = NetworkShape()
    if args.widths:
        first, second, third, fourth = (int(width) for width in args.widths.split(","))
        shape = replace(shape, widths=(first, second, third, fourth))
    run = Run(recipe, shape, class_weights(everything, recipe.balance), args.out)
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
            for name, those in held.items():
                ious = iou(confusion(run.averaged, those))
                line[name] = {"miou": round(float(np.nanmean(ious)), 4),
                              "iou": [round(float(v), 3) for v in ious]}  # fmt: skip
            run.save()
        line["minutes"] = round((time.monotonic() - start) / 60, 2)
        with (args.out / "log.jsonl").open("a") as log:
            print(json.dumps(line), file=log)
    torch.save(run.averaged.state_dict(), args.out / "averaged.pt")


if __name__ == "__main__":
    main()
