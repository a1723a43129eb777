"""Export of traces: spans reach a collector, and without the packages the start is refused."""

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from app.api.request_log import JsonFormatter
from app.errors import SettingsError
from app.main import create_app
from tests.api.test_request_log import SPAN, TRACE, TRACEPARENT, kept, responses
from tests.factories.service import open_client, post, thirds


@pytest.fixture
def collector(monkeypatch) -> Iterator[list[bytes]]:
    """Run an OTLP collector; return the bodies that it has received."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(data) if packed else data)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    yield bodies
    server.shutdown()
    server.server_close()


def test_start_without_the_packages_names_them(make_settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    with pytest.raises(SettingsError, match=r"SEGCAL_TRACES: expected .* 'segcal\[otel\]'"):
        create_app(make_settings(traces="otlp"))


def test_nothing_of_opentelemetry_is_loaded_without_the_setting(make_settings, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    create_app(make_settings())
    assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]


def test_span_continues_the_trace_and_reaches_the_collector(make_settings, collector):
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    lines = kept(JsonFormatter())
    logged = next(lines)
    with open_client(make_settings(traces="otlp")) as client:
        answer = post(client, thirds(), {"traceparent": TRACEPARENT, "X-Request-Id": "mine"})
        assert answer.status_code == 200
        assert client.get("/healthz").status_code == 200
    next(lines, None)

    spans = [
        span
        for body in collector
        for resource in proto.ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    (span,) = (span for span in spans if span.name == "POST /segment")
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == SPAN
    assert len(spans) == 1  # none for /healthz and /readyz
    attributes = {each.key: str(each.value) for each in span.attributes}
    assert "mine" in attributes["http.response.header.x_request_id"]
    assert "tiny" in attributes["http.response.header.x_model"]
    assert "inference;dur=" in attributes["http.response.header.server_timing"]
    (line,) = (line for line in responses(logged) if line["path"] == "/segment")
    assert (line["trace_id"], line["span_id"]) == (TRACE, span.span_id.hex())
