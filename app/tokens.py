"""Bearer tokens: compared in constant time; the admin's is made at first start if none is given."""

import logging
import os
import secrets
from pathlib import Path

from app.errors import UnauthorizedError

log = logging.getLogger(__name__)

FILE = "admin_token"


def admin_token(given: str | None, folder: Path) -> str:
    """Take the configured token, else the one kept in the folder, else make, print and keep one.

    The file has mode 0600. Where the folder can't be written the token lives as long as the
    process.
    """
    if given:
        return given
    path = folder / FILE
    try:
        return path.read_text("ascii").strip() or _make(path)
    except OSError:
        return _make(path)


def check(authorization: str, tokens: tuple[str, ...]) -> None:
    """Let in whoever carries one of the tokens; raises UnauthorizedError otherwise."""
    scheme, _, given = authorization.partition(" ")
    # All tokens are compared, in constant time each, so that timing tells nothing.
    matches = [secrets.compare_digest(given.encode(), token.encode()) for token in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        came = "another one" if given else "none"
        raise UnauthorizedError(f"expected a bearer token of this service, got {came}")


def _make(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive, so that of several processes starting at once one wins and the rest read.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        kept = path.read_text("ascii").strip()
        if kept:
            return kept
    except OSError as error:
        log.warning("the admin token can't be kept: %s", error)
    else:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
    print(f"admin token (printed once, kept in {path}): {token}", flush=True)  # noqa: T201
    return token
