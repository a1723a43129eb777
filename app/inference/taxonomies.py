"""Classes, colours, void label and label mappings of common data sets, by the name in a card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from app.errors import ArgumentError


@dataclass(frozen=True)
class Taxonomy:
    """A data set's classes in the order of their ids, as names with colours `#rrggbb`.

    `ignore_index` is the label of void pixels; with `reduce_zero_label` label maps count classes
    from 1, and 0 is void. A label mapping gives class ids for the values of another form of the
    data set's label maps. `own_colors` are this project's, where the data set has none.
    """

    title: str
    classes: Mapping[str, str]
    ignore_index: int
    reduce_zero_label: bool
    own_colors: bool
    source: str = ""
    label_mappings: Mapping[str, Mapping[str, int]] | None = None

    def map_labels(self, labels: NDArray[np.integer], mapping: str) -> NDArray[np.uint16]:
        """Replace the values of a label map by class ids; values without a class become void.

        Raises ArgumentError for a mapping that the taxonomy does not have.
        """
        known = self.label_mappings or {}
        if mapping not in known:
            raise ArgumentError(f"expected one of {sorted(known)} as label mapping, got {mapping}")
        table = np.full(1 << 16, self.ignore_index, np.uint16)
        for value, class_id in known[mapping].items():
            table[int(value)] = class_id
        inside = (labels >= 0) & (labels < len(table))
        return np.where(inside, table[np.where(inside, labels, 0)], np.uint16(self.ignore_index))


def read_taxonomies() -> dict[str, Taxonomy]:
    """Read the taxonomies that come with the package."""
    text = files("app.inference").joinpath("taxonomies.json").read_text("utf-8")
    return {name: Taxonomy(**values) for name, values in json.loads(text).items()}


TAXONOMIES = read_taxonomies()
