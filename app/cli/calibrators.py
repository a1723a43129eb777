"""`segcal calibrators`: list, activate and archive versions, here or on a running service."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Column, Table

from app.cli.options import ModelOption, TokenOption, UrlOption
from app.client import Connection
from app.main import find_model
from app.settings import Settings, load_settings
from app.storage.artifacts import ArtifactStore
from app.storage.files import replace_file, storage

console = Console(stderr=True)


@dataclass(frozen=True)
class Version:
    """One line of the list; `model_sha256` is the file's it was fitted for."""

    id: str
    method: str
    ece_before: float
    ece_after: float
    images: int
    model_sha256: str
    active: bool


class Listed(NamedTuple):
    """A model's versions, newest first, and its present file's hash."""

    versions: list[Version]
    model_sha256: str


class Versions(Protocol):
    """Where a model's versions are kept."""

    def all(self) -> Listed:
        """List them."""

    def activate(self, calibrator: str, reason: str) -> str:
        """Make one the active one; gives the model's name."""

    def archive(self, calibrator: str) -> bytes:
        """Pack one."""


class LocalVersions:
    """This machine's folders."""

    def __init__(self, settings: Settings, model: str | None) -> None:
        self._store = ArtifactStore(settings.artifacts_dir)
        self._folder = partial(find_model, settings, model)

    def all(self) -> Listed:
        """List them."""
        folder = self._folder()
        name, active = folder.card.name, self._store.active_id(folder.card.name)
        found = [
            Version(
                m.id, m.method, m.ece_before, m.ece_after, m.images, m.model_sha256,
                active=m.id == active,
            )
            for m in self._store.versions(name)
        ]  # fmt: skip
        return Listed(found, folder.sha256)

    def activate(self, calibrator: str, reason: str) -> str:
        """Make one the active one; gives the model's name."""
        folder = self._folder()
        self._store.load(folder.card.name, calibrator, folder.sha256)
        self._store.activate(folder.card.name, calibrator, reason, by="command")
        return folder.card.name

    def archive(self, calibrator: str) -> bytes:
        """Pack one."""
        return self._store.archive(self._store.find(calibrator).model, calibrator)


class RemoteVersions:
    """A running service."""

    def __init__(self, connection: Connection, model: str | None) -> None:
        self._connection, self._model = connection, model

    def all(self) -> Listed:
        """List them."""
        hashes = {m["name"]: m["sha256"] for m in self._connection.json("/models")["models"]}
        query = f"?model={quote(self._model, safe='')}" if self._model else ""
        found = self._connection.json(f"/calibrators{query}")["calibrators"]
        versions = [
            Version(
                m["id"], m["method"], m["ece_before"], m["ece_after"], m["images"],
                m["model_sha256"], active=m["active"],
            )
            for m in found
        ]  # fmt: skip
        return Listed(versions, hashes.get(found[0]["model"], "") if found else "")

    def activate(self, calibrator: str, reason: str) -> str:
        """Make one the active one; gives the model's name."""
        body = json.dumps({"reason": reason}).encode()
        path = f"/calibrators/{quote(calibrator, safe='')}/activate"
        found = self._connection.json(path, body, {"Content-Type": "application/json"})
        return str(found["model"])

    def archive(self, calibrator: str) -> bytes:
        """Pack one."""
        with self._connection.open(f"/calibrators/{quote(calibrator, safe='')}/archive") as answer:
            return answer.read()


def versions_of(model: str | None, url: str | None, token: str | None) -> Versions:
    """Choose between this machine and a service."""
    if url:
        return RemoteVersions(Connection(url, token), model)
    return LocalVersions(load_settings(), model)


def list_command(
    model: ModelOption = None, url: UrlOption = None, token: TokenOption = None
) -> None:
    """List a model's calibrators, newest first; `*` marks the active one."""
    versions, sha256 = versions_of(model, url, token).all()
    # Whatever else is cut short, an id must be there to be copied.
    longest = max((len(version.id) for version in versions), default=0)
    name = Column("calibrator", no_wrap=True, min_width=longest)
    table = Table("", name, "method", "ECE before", "ECE after", "images", "model")
    for version in versions:
        fits = version.model_sha256 == sha256
        ece = f"{version.ece_before:.4f}", f"{version.ece_after:.4f}"
        table.add_row(
            "*" if version.active else "", version.id, version.method, *ece,
            str(version.images), "this" if fits else f"other ({version.model_sha256[:12]})",
        )  # fmt: skip
    Console().print(table)


def activate_command(
    calibrator: str,
    model: ModelOption = None,
    reason: str = "",
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Make a version the active one, or an earlier one again."""
    name = versions_of(model, url, token).activate(calibrator, reason or "no reason given")
    console.print(f"{calibrator} is active for {name}", markup=False)


def archive_command(
    calibrator: str,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The zip file to write.")],
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Pack a version's manifest, parameters and report into a zip file."""
    data = versions_of(None, url, token).archive(calibrator)
    with storage("the archive"):
        replace_file(out, data)
    console.print(f"wrote {out}", markup=False)
