"""Classes of imported models: from a taxonomy with the same names, or with colours of their own."""

import colorsys
import re
from collections.abc import Sequence

from app.inference.taxonomies import TAXONOMIES

GOLDEN_RATIO = 0.618033988749895  # of the hue circle: hues of consecutive classes are far apart


def classes_with_colors(names: Sequence[str]) -> list[dict[str, str]]:
    """Return classes of these names for a card, with distinct colours."""
    colors = (
        colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.75 if index % 2 else 0.5, 0.9)
        for index in range(len(names))
    )
    return [
        {"name": name, "color": "#" + "".join(f"{round(255 * part):02x}" for part in color)}
        for name, color in zip(names, colors, strict=True)
    ]


def label_table(names: Sequence[str]) -> dict[str, object]:
    """Return the card's entry for class names: a taxonomy with the same names, or the classes.

    Case, spaces and punctuation do not count.
    """
    for name, taxonomy in TAXONOMIES.items():
        if list(map(plain, taxonomy.classes)) == list(map(plain, names)):
            return {"taxonomy": name}
    return {"classes": classes_with_colors(names)}


def plain(name: str) -> str:
    """Return a name's letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
