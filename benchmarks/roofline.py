"""What this machine can do at most: copied bytes and powers of two a second, by all its threads."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.numerics import compiled, power_of_two

COPY_FLOATS = 1 << 24  # 64 MiB, beyond the caches
CACHED_FLOATS = 1 << 12  # 16 KiB, within the first one
PASSES = 2000
ROUNDS = 5


@dataclass(frozen=True)
class Roofline:
    """Best of some rounds: bytes read or written a second, and powers of two a second."""

    bytes_per_s: float
    powers_per_s: float

    def seconds(self, classes: int, pixels: int, cells: int, mask_bytes: int) -> float:
        """Bound the time of an emission from below: the slower of its traffic and its powers.

        Logits are read once, mask and confidence written once, and a power is taken for each
        class and pixel.
        """
        traffic = 4 * classes * cells + (4 + mask_bytes) * pixels
        return max(traffic / self.bytes_per_s, classes * pixels / self.powers_per_s)


def measure(threads: int) -> Roofline:
    """Measure both with so many threads at once."""
    sources = [np.ones(COPY_FLOATS // threads, np.float32) for _ in range(threads)]
    targets = [np.empty_like(source) for source in sources]
    copy = best([lambda n=n: np.copyto(targets[n], sources[n]) for n in range(threads)])  # type: ignore[misc]
    cached = [np.full(CACHED_FLOATS, -1.5, np.float32) for _ in range(threads)]
    powers = best([lambda n=n: powers_of_two(cached[n], PASSES) for n in range(threads)])  # type: ignore[misc]
    return Roofline(
        bytes_per_s=2 * 4 * COPY_FLOATS // threads * threads / copy,
        powers_per_s=CACHED_FLOATS * PASSES * threads / powers,
    )


@compiled
def powers_of_two(values: NDArray[np.float32], passes: int) -> None:
    """Take a power of each value and keep it, many times over."""
    for _ in range(passes):
        for x in range(len(values)):
            values[x] = power_of_two(-values[x])


def best(works: list[Callable[[], object]]) -> float:
    """Run all at once in threads of their own; give the seconds of the fastest round."""
    seconds = []
    for _ in range(ROUNDS):
        helpers = [threading.Thread(target=work) for work in works]
        started = time.perf_counter()
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
