"""Headers that limit what a browser does with a response, and the policies of the pages."""

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = "Content-Security-Policy"
NO_FRAME = "frame-ancestors 'none'; base-uri 'none'"
# Of data that are opened as a page: nothing is loaded or run.
DATA_POLICY = f"default-src 'none'; {NO_FRAME}"
# A diagram's colours and fonts are in `style` attributes.
SVG_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; sandbox; {NO_FRAME}"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self'; style-src 'self'; "
    f"form-action 'self'; {NO_FRAME}"
)
HEADERS = {
    CSP: DATA_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class SecurityHeadersMiddleware:
    """Adds `HEADERS` to every response; one that has such a header keeps its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `send` to add the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, secured)


def docs_policy(html: str) -> str:
    """Return the policy of the API documentation, which allows its inline scripts by hash."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'self'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data:; form-action 'self'; {NO_FRAME}"
    )
