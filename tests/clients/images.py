"""Microscopy images with label maps, unlike those of the bundled model's calibrator."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
SIDE = 128


def shifted_nuclei(count: int) -> list[tuple[bytes, np.ndarray]]:
    """Return images as PNG, uint8 RGB [128,128,3], with label maps [128,128].

    Crops of the stained images of NUCLEI_DIR, where it is set, else of the example with noise.
    """
    rng = np.random.default_rng(0)
    sources = load_sources()
    found = []
    for index in range(count):
        image, labels = sources[index % len(sources)]
        top = int(rng.integers(0, image.shape[0] - SIDE + 1))
        left = int(rng.integers(0, image.shape[1] - SIDE + 1))
        window = np.s_[top : top + SIDE, left : left + SIDE]
        crop = image[window]
        if len(sources) == 1:
            noisy = crop * 0.5 + rng.normal(40, 25, crop.shape)
            crop = np.clip(noisy, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "PNG")
        found.append((buffer.getvalue(), labels[window]))
    return found


def load_sources() -> list[tuple[np.ndarray, np.ndarray]]:
    """Load the images, uint8 RGB, with their label maps."""
    examples = [(ROOT / "examples/nuclei.png", ROOT / "examples/nuclei_label.png")]
    if folder := os.environ.get("NUCLEI_DIR"):
        names = sorted(path.name for path in (Path(folder) / "shift").iterdir())
        examples = [(Path(folder) / "shift" / n, Path(folder) / "shiftannot" / n) for n in names]
    return [
        (np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(labels)))
        for image, labels in examples
    ]
