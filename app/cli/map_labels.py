"""`segcal map-labels`: label maps of a data set in another form, as class ids of a taxonomy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.inference.taxonomies import Taxonomy


def map_labels_command(
    labels: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder.")],
    taxonomy: Annotated[str, typer.Option(help="The data set, such as cityscapes.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the class ids as PNG.")],
    mapping: Annotated[
        str | None,
        typer.Option(help="The form of the label maps, such as labelIds; by default the only one."),
    ] = None,
) -> None:
    """Write label maps of a data set in another form as class ids of its taxonomy."""
    from rich.console import Console
    from rich.progress import track

    from app.datasets.images import images_by_stem, read_labels
    from app.errors import ArgumentError
    from app.imaging import encode
    from app.inference.model_card import ClassInfo
    from app.inference.taxonomies import TAXONOMIES
    from app.settings import load_settings
    from app.storage.files import replace_file, storage

    console = Console(stderr=True)
    if taxonomy not in TAXONOMIES:
        raise ArgumentError(f"--taxonomy: expected one of {sorted(TAXONOMIES)}, got {taxonomy}")
    known = TAXONOMIES[taxonomy]
    chosen = choose_mapping(known, taxonomy, mapping)
    palette = [ClassInfo(name=name, color=color).rgb for name, color in known.classes.items()]
    files = images_by_stem(labels)
    if not files:
        raise ArgumentError(f"expected a folder with label maps, got none in {labels}")
    if out.resolve() == labels.resolve():
        raise ArgumentError(f"--out: expected another folder than that of the labels, got {out}")
    max_pixels = load_settings().max_pixels
    void = pixels = 0
    with storage("label maps"):
        out.mkdir(parents=True, exist_ok=True)
    for stem, path in track(files.items(), "label maps", console=console):
        mapped = known.map_labels(read_labels(path, max_pixels), chosen)
        void += int((mapped == known.ignore_index).sum())
        pixels += mapped.size
        with storage("a label map"):
            replace_file(out / f"{stem}.png", encode.mask_png(mapped.astype("uint8"), palette))
    console.print(
        f"{len(files)} label maps in {out}; {void / pixels:.1%} of the pixels are void",
        soft_wrap=True,
    )


def choose_mapping(taxonomy: "Taxonomy", name: str, mapping: str | None) -> str:
    """Return a label mapping of a taxonomy, by default its only one; raises ArgumentError."""
    from app.errors import ArgumentError

    known = sorted(taxonomy.label_mappings or {})
    if not known:
        raise ArgumentError(f"--taxonomy: expected one with label mappings, got {name}")
    if mapping is None and len(known) == 1:
        return known[0]
    if mapping not in known:
        raise ArgumentError(f"--mapping: expected one of {known}, got {mapping or 'none'}")
    return mapping
