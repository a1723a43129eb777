"""Bearer tokens, compared in constant time; an admin token is generated at the first start."""

import logging
import secrets
from pathlib import Path

from app.errors import SettingsError, UnauthorizedError
from app.storage.files import locked, replace_file

log = logging.getLogger(__name__)

FILE, LOCK = "admin_token", ".admin_token.lock"


def admin_token(configured: str | None, folder: Path) -> str:
    """Return the configured token, else the stored one, else generate, print and store one.

    The file has mode 0600. Where the folder can't be written, the token changes with every start.
    """
    if configured:
        return configured
    path, token = folder / FILE, secrets.token_urlsafe(32)
    where = f"stored in {path}"
    try:
        if stored := _read_token(path):
            return stored
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK):  # one of several starting processes generates it
            if stored := _read_token(path):
                return stored
            replace_file(path, f"{token}\n".encode("ascii"), mode=0o600)
    except OSError as error:
        log.warning("the admin token can't be stored: %s", error)
        where = "not stored: it changes with every start"
    print(f"admin token (printed once, {where}): {token}", flush=True)  # noqa: T201
    return token


def _read_token(path: Path) -> str | None:
    """Read the stored token; None where the file is missing or empty.

    Raises SettingsError for a damaged one.
    """
    try:
        return path.read_text("ascii").strip() or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path}: expected a token in ASCII, got other bytes; delete it to have one created"
        ) from error


def check(authorization: str, tokens: tuple[str, ...]) -> None:
    """Raise UnauthorizedError where an `Authorization` header holds none of the tokens."""
    scheme, _, credentials = authorization.partition(" ")
    # All tokens are compared, in constant time each, so that timing reveals nothing.
    matches = [secrets.compare_digest(credentials.encode(), token.encode()) for token in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        received = "another one" if credentials else "none"
        raise UnauthorizedError(f"expected a bearer token of this service, got {received}")
