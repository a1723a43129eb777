"""Write OUT/images/NNNNN.png and OUT/labels/NNNNN.png for consecutive seeds."""

import argparse
from pathlib import Path

from PIL import Image

from training.scenes import CONDITIONS, render_scene


def main() -> None:
    """Render and write scenes."""
    parser = argparse.ArgumentParser(prog="python -m training.scenes", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--condition", choices=CONDITIONS)
    options = parser.parse_args()
    for name in ("images", "labels"):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    for index in range(options.count):
        scene = render_scene(options.seed + index, options.height, options.width, options.condition)
        Image.fromarray(scene.image).save(options.out / "images" / f"{index:05d}.png")
        Image.fromarray(scene.label).save(options.out / "labels" / f"{index:05d}.png")


if __name__ == "__main__":
    main()
