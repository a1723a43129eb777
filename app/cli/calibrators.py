"""`segcal calibrators`: list, activate, archive and delete versions, local or of a service."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import ModelOption, TokenOption, UrlOption, connect, print_line

if TYPE_CHECKING:
    from app.storage.artifacts import ArtifactStore

CalibratorArgument = Annotated[str, typer.Argument(help="A version's id.")]


def list_command(
    model: ModelOption = None, url: UrlOption = None, token: TokenOption = None
) -> None:
    """List a model's calibrators, newest first; `*` marks the active one.

    ECE before and after calibration are those of the test images of the version's own fit. Versions
    with the same number in the column "test set" were measured on the same images.
    """
    from app.cli.versions import list_locally, list_remotely, print_listing

    with connect(url, token) as client:
        listing = list_remotely(model, client) if client is not None else list_locally(model)
    print_listing(listing)


def activate_command(
    calibrator: CalibratorArgument,
    model: ModelOption = None,
    reason: Annotated[str, typer.Option(help="For the history.")] = "",
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Activate a version, which may be an earlier one."""
    reason = reason or "no reason given"
    with connect(url, token) as client:
        if client is not None:
            name = client.activate(calibrator, reason).model
        else:
            from app.serving.model_folders import find_model
            from app.settings import load_settings

            folder, store = find_model(load_settings(), model), local_store()
            name = folder.card.name
            store.load(name, calibrator, folder.sha256, folder.weights_sha256)
            store.activate(name, calibrator, reason, by="command")
    print_line(f"{calibrator} is active for {name}")


def archive_command(
    calibrator: CalibratorArgument,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The zip file to write.")],
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Pack a version's manifest, parameters and report into a zip file."""
    from app.storage.files import replace_file, storage

    with connect(url, token) as client:
        if client is not None:
            data = client.archive(calibrator)
        else:
            store = local_store()
            data = store.archive(store.model_of(calibrator), calibrator)
    with storage("the archive"):
        replace_file(out, data)
    print_line(f"wrote {out}")


def delete_command(
    calibrator: CalibratorArgument, url: UrlOption = None, token: TokenOption = None
) -> None:
    """Delete a version that is not active."""
    with connect(url, token) as client:
        if client is not None:
            client.delete(calibrator)
        else:
            store = local_store()
            store.delete(store.model_of(calibrator), calibrator)
    print_line(f"deleted {calibrator}")


def local_store() -> "ArtifactStore":
    """Open the versions of the configured folder."""
    from app.settings import load_settings
    from app.storage.artifacts import ArtifactStore

    return ArtifactStore(load_settings().artifacts_dir)
