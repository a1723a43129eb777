"""Run the study: `python -m benchmarks.paper NAME=WEIGHTS … --cache DIR --out docs/paper`."""

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks.paper.figure import draw
from benchmarks.paper.logits import StoredSet, open_network, store
from benchmarks.paper.scenes import groups
from benchmarks.paper.study import Results, run
from benchmarks.paper.tables import document
from training.data import camvid_dir


def main() -> None:
    """Write `OUT-tables.md` and `OUT.svg`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbones", nargs="+", help="NAME=WEIGHTS, of 0016E5 only")
    parser.add_argument("--camvid", help="CamVid's folder (default: CAMVID_DIR)")
    parser.add_argument("--cache", type=Path, default=Path("runs/paper"), help="for logits")
    parser.add_argument("--out", type=Path, default=Path("docs/paper"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    results: dict[str, Results] = {}
    for given in args.backbones:
        name, _, weights = given.partition("=")
        sets = logits(Path(weights), args.cache / name, camvid_dir(args.camvid))
        results[name] = {}
        for method, evaluations in run(sets):
            results[name][method] = evaluations
            eces = (f"{setting} {e.result().ece_image:.4f}" for setting, e in evaluations.items())
            print(f"{name:12} {method:26}", *eces, file=sys.stderr, flush=True)
    args.out.with_name(f"{args.out.name}-tables.md").write_text(document(results), "utf-8")
    draw(results, args.out.with_suffix(".svg"))


def logits(weights: Path, folder: Path, root: Path) -> dict[str, StoredSet]:
    """Run one backbone over all groups."""
    network = open_network(weights)
    return {group.name: store(network, group, folder) for group in groups(root)}


if __name__ == "__main__":
    main()
