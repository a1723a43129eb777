"""The table of `segcal calibrators list`."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Column, Table

from app.client import Client
from app.errors import ArtifactError
from app.schemas.calibrator import Manifest
from app.serving.model_folders import find_model
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore


class Listing(NamedTuple):
    """A model's versions, newest first, the active one's id, the model's hash, and all damage."""

    model: str
    versions: Sequence[Manifest]
    active: str | None
    model_sha256: str
    damage: list[str]


def list_locally(model: str | None) -> Listing:
    """List the versions in the configured folders."""
    settings = load_settings()
    folder = find_model(settings, model)
    store, name = ArtifactStore(settings.artifacts_dir), folder.card.name
    versions, damaged = store.scan(name)
    damage, active = list(damaged.values()), None
    try:
        active = store.active_id(name)
    except ArtifactError as error:
        damage.append(str(error))
    return Listing(name, versions, active, folder.sha256, damage)


def list_remotely(model: str | None, client: Client) -> Listing:
    """List the versions of a running service."""
    served = client.model(model)
    listed = client.calibrators(served.name)
    active = next((version.id for version in listed.calibrators if version.active), None)
    damage = list(listed.damaged.values())
    return Listing(served.name, listed.calibrators, active, served.sha256, damage)


def print_listing(listing: Listing) -> None:
    """Print the versions as a table, and the damage of others."""
    # Neither ids, which hold the method, nor numbers are cut in a terminal of 80 columns.
    longest = max((len(version.id) for version in listing.versions), default=0)
    table = Table(
        "", Column("calibrator", no_wrap=True, min_width=longest),
        Column("ECE before", min_width=6), Column("ECE after", min_width=6),
        Column("test set", min_width=4), "images", "model",
        title=f"calibrators of {listing.model}", title_justify="left", box=None,
        caption="ECE: image-wise, 10 bins; comparable within one test set", caption_justify="left",
    )  # fmt: skip
    for version, test_set in zip(listing.versions, number_test_sets(listing.versions), strict=True):
        current = version.model_sha256 == listing.model_sha256
        table.add_row(
            "*" if version.id == listing.active else "", version.id,
            f"{version.ece_before:.4f}", f"{version.ece_after:.4f}", str(test_set),
            str(version.images), "current" if current else "other",
        )  # fmt: skip
    Console().print(table)
    errors = Console(stderr=True)
    for damage in listing.damage:
        errors.print(f"damaged: {damage}", style="red", markup=False, soft_wrap=True)


def number_test_sets(versions: Sequence[Manifest]) -> list[int]:
    """Number the test sets of versions, from 1 for that of the oldest.

    The uncalibrated ECE of one model on the same pixels is the same number.
    """
    numbers: dict[tuple[str, int, float], int] = {}
    for version in reversed(versions):
        numbers.setdefault(measured(version), len(numbers) + 1)
    return [numbers[measured(version)] for version in versions]


def measured(version: Manifest) -> tuple[str, int, float]:
    """Return the model, the pixels and the uncalibrated ECE that a version was measured with."""
    return version.model_sha256, version.pixels, version.ece_before
