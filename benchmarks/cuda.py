"""The pipeline on a GPU: `python -m benchmarks.cuda`. Without one it says so and ends.

The bundled network's architecture in torch, in half precision: alone, compiled by torch, with plain
interpolation, softmax and maximum behind it, and with our emission; and our emission's time against
that of copying as many bytes as it must read and write.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from app.inference.postprocess import emit
from app.inference.preprocess import Geometry
from training.network import NetworkShape, PyramidNet

SHAPES = ((11, 360, 480), (19, 1024, 2048), (150, 512, 512))


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Give the median time of some work, measured on the device."""
    times: list[float] = []
    for turn in range(rounds + 3):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:  # the first ones warm up
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def plain(logits: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Do what everybody does, and bring the answer to the CPU."""
    fine = F.interpolate(logits.float(), (height, width), mode="bilinear")
    confidence, mask = fine.softmax(dim=1).max(dim=1)
    return mask.to(torch.uint8).cpu(), confidence.cpu()


def ours(logits: Tensor, geometry: Geometry) -> object:
    """Emit the answer of one image, logits [K,h,w]."""
    return emit(logits, logits, geometry)


@torch.inference_mode()
def measure(classes: int, height: int, width: int, rounds: int) -> list[float]:
    """Measure one shape: milliseconds, in the order of the table's heads."""
    network = PyramidNet(NetworkShape(num_classes=classes)).cuda().half().eval()
    compiled = torch.compile(network)
    padded = -(-height // 32) * 32, -(-width // 32) * 32
    images = torch.rand(1, 3, *padded, device="cuda", dtype=torch.half)
    geometry = Geometry((height, width), (height, width), padded)
    logits = network(images)[0].float()
    moved = logits.numel() * logits.element_size() + height * width * 5
    source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    return [
        milliseconds(lambda: network(images), rounds),
        milliseconds(lambda: compiled(images), rounds),
        milliseconds(lambda: plain(network(images), height, width), rounds),
        milliseconds(lambda: ours(network(images)[0].float(), geometry), rounds),
        milliseconds(lambda: ours(logits, geometry), rounds),
        milliseconds(source.clone, rounds),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    heads = ("network", "compiled", "network and plain answer", "network and ours", "ours", "copy")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, milliseconds\n")
    print("| shape |", " | ".join(heads), "|")
    print("|---|" + "---:|" * len(heads))
    for classes, height, width in SHAPES:
        found = measure(classes, height, width, options.rounds)
        cells = " | ".join(f"{value:.2f}" for value in found)
        print(f"| {classes}x{height}x{width} | {cells} |")


if __name__ == "__main__":
    main()
