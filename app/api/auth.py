"""Bearer tokens: compared in constant time; the admin's is made at first start if none is given."""

import logging
import secrets
from pathlib import Path

from app.errors import UnauthorizedError
from app.storage.files import locked, replace_file

log = logging.getLogger(__name__)

FILE, LOCK = "admin_token", ".admin_token.lock"


def admin_token(given: str | None, folder: Path) -> str:
    """Take the configured token, else the one kept in the folder, else make, print and keep one.

    The file has mode 0600. Where the folder can't be written the token lives as long as the
    process.
    """
    if given:
        return given
    path, token = folder / FILE, secrets.token_urlsafe(32)
    where = f"kept in {path}"
    try:
        if kept := _kept(path):
            return kept
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK):  # of several processes starting at once one makes it
            if kept := _kept(path):
                return kept
            replace_file(path, f"{token}\n".encode("ascii"), mode=0o600)
    except OSError as error:
        log.warning("the admin token can't be kept: %s", error)
        where = "kept nowhere: it changes with every start"
    print(f"admin token (printed once, {where}): {token}", flush=True)  # noqa: T201
    return token


def _kept(path: Path) -> str | None:
    """Read the file; None where there is none, or an empty one."""
    try:
        return path.read_text("ascii").strip() or None
    except FileNotFoundError:
        return None


def check(authorization: str, tokens: tuple[str, ...]) -> None:
    """Let in whoever carries one of the tokens; raises UnauthorizedError otherwise."""
    scheme, _, given = authorization.partition(" ")
    # All tokens are compared, in constant time each, so that timing tells nothing.
    matches = [secrets.compare_digest(given.encode(), token.encode()) for token in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        came = "another one" if given else "none"
        raise UnauthorizedError(f"expected a bearer token of this service, got {came}")
