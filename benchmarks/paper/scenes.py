"""The images of the study: what calibrators are fitted on, and what they are measured on.

The backbones saw drive 0016E5 only. Calibrators see every second frame of drive 0006R0 and are
measured on the others (the same day), on drive 0001TP (dusk, another day), on rendered streets by
night, in fog and rain, and on spoiled copies of the held-out frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.imaging.corruptions import KINDS, STRENGTHS, corrupt
from training.data import Frame, load_frames
from training.scenes import render_scene

FIT_DRIVE, DUSK_DRIVE = "0006R0", "0001TP"
RENDERED_WEATHERS = ("night", "fog", "rain")
RENDERED_SEED, RENDERED_COUNT = 900_000, 24
SPOILED_EVERY = 3  # of the held-out frames: neighbours look alike


@dataclass(frozen=True)
class Group:
    """Images that are measured together; `kind` is their corruption, if any."""

    name: str
    frames: Sequence[Frame]
    kind: str | None = None


def groups(root: Path) -> Iterator[Group]:
    """Give every group of images: the ones to fit on, their copies, and the measured ones."""
    day = load_frames(root / "train", root / "trainannot", (FIT_DRIVE,))
    fit, held_out = day[::2], day[1::2]
    yield Group("fit", fit)
    for kind in KINDS:  # one copy of each kind for each image, at a strength drawn by its number
        yield Group(f"fit {kind}", [
            spoiled(frame, kind, STRENGTHS[number * 2 % 5], number)
            for number, frame in enumerate(fit)
        ], kind)  # fmt: skip
    yield Group("day", held_out)
    yield Group("dusk", load_frames(root / "train", root / "trainannot", (DUSK_DRIVE,)))
    for place, weather in enumerate(RENDERED_WEATHERS):
        seeds = range(RENDERED_SEED + 1000 * place, RENDERED_SEED + 1000 * place + RENDERED_COUNT)
        yield Group(f"rendered {weather}", [rendered(seed, weather) for seed in seeds])
    for kind in KINDS:
        for strength in STRENGTHS:
            yield Group(f"{kind} {strength}", [
                spoiled(frame, kind, strength, 10_000 + number)
                for number, frame in enumerate(held_out[::SPOILED_EVERY])
            ], kind)  # fmt: skip


def spoiled(frame: Frame, kind: str, strength: int, seed: int) -> Frame:
    """Spoil a frame's image; its labels stay."""
    return Frame(corrupt(frame.image, kind, strength, seed), frame.label)


def rendered(seed: int, weather: str) -> Frame:
    """Render one street."""
    scene = render_scene(seed, weather=weather)
    return Frame(np.asarray(scene.image), np.asarray(scene.label))
