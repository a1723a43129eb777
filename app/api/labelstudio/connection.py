"""Requests to Label Studio and to the hosts of its images, and to no others."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import httpx2

from app.deadline import UNLIMITED, Deadline
from app.errors import ArgumentError, NotFoundError, TooLargeError, UnavailableError
from app.settings import Settings

TIMEOUT_S = 10.0  # of a connection, and between two pieces of a body
TOTAL_S = 30.0  # of one file
REDIRECTS = 3
PIECE = 64 << 10
DATA = "/data/"  # paths of Label Studio that serve files, uploaded ones and those of its disk
PORTS = {"http": 80, "https": 443}


class Connection:
    """Reads JSON of the configured Label Studio, and images of it and of the allowed hosts.

    Redirects are followed to the same origin only. The token is sent to Label Studio alone. Methods
    raise ArgumentError for an address that is not allowed, NotFoundError for one that does not
    exist, TooLargeError above `max_bytes`, UnavailableError for a host that does not respond.
    """

    def __init__(self, settings: Settings) -> None:
        self._base = httpx2.URL((settings.labelstudio_url or "").rstrip("/"))
        self._token = settings.labelstudio_token
        self._hosts = frozenset(settings.labelstudio_hosts)
        self._max_bytes = settings.max_upload_bytes
        # Proxies and credentials of the environment would be those of another purpose.
        # Addresses of images may hold credentials, which httpx would write to the log.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._http = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)

    @property
    def configured(self) -> bool:
        """Return whether Label Studio's address and token are set."""
        return bool(self._base.host and self._token)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def read_json(self, path: str) -> dict[str, Any]:
        """Read an object of Label Studio's API, at a path below its address."""
        body = self._read(self._base.copy_with(path=f"{self._base.path.rstrip('/')}{path}"))
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UnavailableError(f"expected JSON at {path}, got {body[:80]!r}") from error
        if not isinstance(value, dict):
            raise UnavailableError(f"expected an object at {path}, got another value")
        return value

    def read_image(self, address: str, deadline: Deadline = UNLIMITED) -> bytes:
        """Read an image by its address in a task's data: a URL, or a path of Label Studio."""
        return self._read(self._image_url(address), deadline)

    def _image_url(self, address: str) -> httpx2.URL:
        """Return the URL of an image; raises ArgumentError for a host that is not allowed."""
        try:
            url = httpx2.URL(address)
        except httpx2.InvalidURL:
            raise ArgumentError(f"expected the URL of an image, got {address[:80]!r}") from None
        if url.is_relative_url and address.startswith(DATA) and self.configured:
            url = httpx2.URL(f"{self._base}{address}")
        own = _origin(url) == _origin(self._base)
        if url.scheme in PORTS and (self._serves_files(url) if own else self._allows(url)):
            return url
        raise ArgumentError(
            f"expected an image of a host in SEGCAL_LABELSTUDIO_HOSTS or a file of "
            f"SEGCAL_LABELSTUDIO_URL, got {address[:80]!r}"
        )

    def _allows(self, url: httpx2.URL) -> bool:
        """Return whether a host is listed; without a port the list means the scheme's own."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        known = {f"{host}:{url.port or PORTS[url.scheme]}".lower()}
        if url.port in (None, PORTS[url.scheme]):
            known.add(host.lower())
        return bool(known & self._hosts)

    def _serves_files(self, url: httpx2.URL) -> bool:
        """Return whether a URL of Label Studio is that of a file, so that it may have the token."""
        path = unquote(url.path)
        return path.startswith(f"{self._base.path.rstrip('/')}{DATA}") and ".." not in path

    def _read(self, url: httpx2.URL, deadline: Deadline = UNLIMITED) -> bytes:
        """Read a body, following redirects to the same origin."""
        origin = _origin(url)
        headers = {"Accept-Encoding": "identity"}
        if origin == _origin(self._base):
            headers |= self._authorization()
        try:
            for _ in range(REDIRECTS + 1):
                target = self._step(url, headers, deadline)
                if isinstance(target, bytes):
                    return target
                if _origin(target) != origin:
                    raise ArgumentError(
                        f"expected a file at {url.host}, got a redirect to {target.host[:80]!r}"
                    )
                url = target
        except httpx2.HTTPError as error:
            raise UnavailableError(f"expected a response of {url.host}, got: {error}") from error
        raise ArgumentError(f"expected at most {REDIRECTS} redirects of {url.host}, got more")

    def _step(
        self, url: httpx2.URL, headers: Mapping[str, str], deadline: Deadline
    ) -> bytes | httpx2.URL:
        """Send one request; return its body, or the address that it redirects to."""
        started = time.monotonic()
        with self._http.stream("GET", url, headers=headers) as response:
            if response.has_redirect_location:
                return url.join(response.headers["location"])
            status = f"{response.status_code} at {url.host}"
            if response.is_server_error or response.status_code == 429:
                raise UnavailableError(f"expected a file, got {status}")
            if not response.is_success:
                raise NotFoundError(f"expected a file, got {status}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ArgumentError(f"expected a file as it is, got a compressed one of {url.host}")
            body = bytearray()
            for piece in response.iter_raw(PIECE):
                body += piece
                deadline.check()
                if len(body) > self._max_bytes:
                    raise TooLargeError(
                        f"expected at most {self._max_bytes} bytes of {url.host}, got more"
                    )
                if time.monotonic() - started > TOTAL_S:
                    raise UnavailableError(
                        f"expected a file of {url.host} within {TOTAL_S:g} s, got a part of it"
                    )
            return bytes(body)

    def _authorization(self) -> dict[str, str]:
        """Return the header of the token; a personal access token is exchanged first."""
        token = self._token or ""
        if token.count(".") != 2:  # no JSON Web Token
            return {"Authorization": f"Token {token}"}
        url = self._base.copy_with(path=f"{self._base.path.rstrip('/')}/api/token/refresh")
        response = self._http.post(url, json={"refresh": token})
        try:
            return {"Authorization": f"Bearer {response.json()['access']}"}
        except (ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                f"expected {url.host} to accept SEGCAL_LABELSTUDIO_TOKEN, got "
                f"{response.status_code}"
            ) from error


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port."""
    return url.scheme, url.host, url.port or PORTS.get(url.scheme)
