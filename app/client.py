"""A running service, as the command line's remote halves talk to it.

HTTP for large uploads: a refusal that comes while data is still being sent is heard.

A server that refuses an upload answers and closes before it has read all of it. What is sent after
that breaks the pipe, yet the answer has come by then and only waits to be read.
"""

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote
from urllib.request import HTTPHandler, HTTPSHandler, Request

from app.errors import ArgumentError, InputError, UnavailableError

TIMEOUT_S = 600  # an upload is checked before it is answered


class Connection:
    """Asks one service, with a token if there is one."""

    def __init__(self, url: str, token: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ArgumentError(f"--url: expected http:// or https://, got {url!r}")
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(ListeningHandler, ListeningTlsHandler)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @contextmanager
    def open(
        self,
        path: str,
        data: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[HTTPResponse]:
        """Ask, with POST where there is data.

        Raises InputError with the service's own sentence where it refuses, and UnavailableError
        where there is none.
        """
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._url + path, data, {**self._headers, **(headers or {})}
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            raise InputError(problem_detail(error)) from error
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise UnavailableError(f"expected a service at {self._url}, got: {error}") from error

    def json(
        self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Any:  # noqa: ANN401 - whatever the service answers
        """Ask for a JSON document."""
        with self.open(path, data, headers) as answer:
            return json.load(answer)

    def model(self, name: str | None) -> dict[str, Any]:
        """Ask what is known of a model; without a name, of the one that answers by default.

        Raises InputError where there is none.
        """
        if name is not None:
            known: dict[str, Any] = self.json(f"/models/{quote(name, safe='')}")
            return known
        models: list[dict[str, Any]] = self.json("/models")["models"]
        for entry in models:
            if entry["default"]:
                return entry
        names = sorted(entry["name"] for entry in models)
        raise InputError(f"expected one of the models {names}, got none by name and no default")


def problem_detail(error: urllib.error.HTTPError) -> str:
    """Read the sentence out of a problem."""
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"expected an answer of segcal, got {error.code} {error.reason}"


log = logging.getLogger(__name__)


class ListeningConnection(HTTPConnection):
    """Sends until the other side has had enough; the answer, if any, is read as ever."""

    def endheaders(self, message_body: Any = None, *, encode_chunked: bool = False) -> None:  # noqa: ANN401
        """Send the request; a pipe that breaks on the way is no failure yet."""
        try:
            super().endheaders(message_body, encode_chunked=encode_chunked)
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError) as error:
            log.debug("the upload was cut off: %s", error)


class ListeningTlsConnection(ListeningConnection, HTTPSConnection):
    """The same over TLS."""


class ListeningHandler(HTTPHandler):
    """Opens http:// addresses so."""

    def http_open(self, req: Request) -> HTTPResponse:
        """Send a request and give its answer."""
        return self.do_open(ListeningConnection, req)


class ListeningTlsHandler(HTTPSHandler):
    """Opens https:// addresses so."""

    def https_open(self, req: Request) -> HTTPResponse:
        """Send a request and give its answer."""
        return self.do_open(ListeningTlsConnection, req)
