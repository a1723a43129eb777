"""Access to the backend: API tokens as bearer tokens or as the password of basic authentication.

Label Studio sends no other header than that of basic authentication; it takes user and password
from its form for a backend, or from the backend's URL, which the webhook then has as well.
"""

import base64
import binascii
from typing import Annotated

from fastapi import Depends, Request

from app.api import auth as tokens
from app.api.dependencies import API_TOKEN, State, get_state


async def check_client(
    request: Request,
    state: Annotated[State, Depends(get_state)],
    _bearer: Annotated[object, Depends(API_TOKEN)],
) -> None:
    """Require an API token or the admin token, where API tokens are configured."""
    if state.settings.api_tokens:
        authorization = request.headers.get("authorization", "")
        tokens.check(bearer(authorization), (*state.settings.api_tokens, state.admin_token))


def bearer(authorization: str) -> str:
    """Return a header of basic authentication as one of the password as bearer token."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return authorization
    return f"Bearer {password}"


ClientCheck = Depends(check_client)
