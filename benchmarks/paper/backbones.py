"""Trained backbones of the study, named by data and network: `camvid-unet`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.data import StoredPart, stored_parts
from training.data import SETS
from training.networks import open_network


@dataclass(frozen=True)
class Backbone:
    """A backbone's name and its logits on all parts."""

    name: str
    parts: Mapping[str, StoredPart]

    @property
    def data(self) -> str:
        """Return the name of the set of images."""
        return self.name.partition("-")[0]


def backbones(names: Sequence[str], runs: Path) -> Iterator[Backbone]:
    """Open `RUNS/NAME/averaged.pt` for each name and compute its logits, or read stored ones."""
    for name in names:
        data = SETS[name.partition("-")[0]]
        network = open_network(runs / name / "averaged.pt")
        yield Backbone(name, stored_parts(network, data, data.folder(), runs / "logits" / name))
