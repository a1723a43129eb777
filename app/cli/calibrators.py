"""`segcal calibrators`: list, activate and archive versions, local or of a running service."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Column, Table

from app.cli.options import ModelOption, TokenOption, UrlOption, connect
from app.client import Client
from app.errors import ArtifactError
from app.schemas.calibrator import Manifest
from app.serving.model_folders import find_model
from app.settings import load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import replace_file, storage

console = Console(stderr=True)


class Listing(NamedTuple):
    """A model's versions, newest first, the active one's id, the model's hash, and all damage."""

    versions: list[Manifest]
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
    return Listing(versions, active, folder.sha256, damage)


def list_remotely(model: str | None, client: Client) -> Listing:
    """List the versions of a running service."""
    versions, damage = client.calibrators(model)
    active = next((version["id"] for version in versions if version["active"]), None)
    sha256 = client.model(versions[0]["model"])["sha256"] if versions else ""
    manifests = TypeAdapter(list[Manifest]).validate_python(versions)
    return Listing(manifests, active, sha256, list(damage.values()))


def list_command(
    model: ModelOption = None, url: UrlOption = None, token: TokenOption = None
) -> None:
    """List a model's calibrators, newest first; `*` marks the active one."""
    with connect(url, token) as client:
        listing = list_remotely(model, client) if client else list_locally(model)
    # Neither ids, which hold the method, nor numbers are cut in a terminal of 80 columns.
    longest = max((len(version.id) for version in listing.versions), default=0)
    name = Column("calibrator", no_wrap=True, min_width=longest)
    eces = Column("ECE before", min_width=6), Column("ECE after", min_width=6)
    table = Table("", name, *eces, "images", "model", box=None)
    for version in listing.versions:
        current = version.model_sha256 == listing.model_sha256
        ece = f"{version.ece_before:.4f}", f"{version.ece_after:.4f}"
        table.add_row(
            "*" if version.id == listing.active else "", version.id, *ece,
            str(version.images), "current" if current else "other",
        )  # fmt: skip
    Console().print(table)
    for damage in listing.damage:
        console.print(f"damaged: {damage}", style="red", markup=False, soft_wrap=True)


def activate_command(
    calibrator: str,
    model: ModelOption = None,
    reason: str = "",
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Activate a version, which may be an earlier one."""
    reason = reason or "no reason given"
    if url:
        with Client(url, token) as client:
            name = client.activate(calibrator, reason)["model"]
    else:
        settings = load_settings()
        folder, store = find_model(settings, model), ArtifactStore(settings.artifacts_dir)
        name = folder.card.name
        store.load(name, calibrator, folder.sha256, folder.weights_sha256)
        store.activate(name, calibrator, reason, by="command")
    console.print(f"{calibrator} is active for {name}", markup=False)


def archive_command(
    calibrator: str,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The zip file to write.")],
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Pack a version's manifest, parameters and report into a zip file."""
    if url:
        with Client(url, token) as client:
            data = client.archive(calibrator)
    else:
        store = ArtifactStore(load_settings().artifacts_dir)
        data = store.archive(store.model_of(calibrator), calibrator)
    with storage("the archive"):
        replace_file(out, data)
    console.print(f"wrote {out}", markup=False)
