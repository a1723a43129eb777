"""HTTP for large uploads: a refusal that comes while data is still being sent is heard.

A server that refuses an upload answers and closes before it has read all of it. What is sent after
that breaks the pipe, yet the answer has come by then and only waits to be read.
"""

import logging
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.request import HTTPHandler, HTTPSHandler, Request

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
