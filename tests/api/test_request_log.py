"""Request ids, trace context and log lines."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.api.request_log import JsonFormatter, TextFormatter, Trace, parse_traceparent
from tests.conftest import MakeClient
from tests.factories.service import assert_problem, encoded, post, thirds

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


class Lines(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("httpx"):  # the client's own log
            self.lines.append(self.format(record))


@pytest.fixture
def json_lines() -> Iterator[list[str]]:
    yield from kept(JsonFormatter())


@pytest.fixture
def text_lines() -> Iterator[list[str]]:
    yield from kept(TextFormatter())


def kept(formatter: logging.Formatter) -> Iterator[list[str]]:
    root, handler = logging.getLogger(), Lines(formatter)
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield handler.lines
    root.removeHandler(handler)
    root.setLevel(level)


def responses(lines: list[str]) -> list[dict[str, object]]:
    """Return the lines of responses, as JSON values."""
    return [line for line in map(json.loads, lines) if line["logger"] == "segcal.access"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (TRACEPARENT, Trace(TRACE, SPAN)),
        (f"01-{TRACE}-{SPAN}-01-more", Trace(TRACE, SPAN)),
        ("", None),
        (f"{TRACEPARENT}-more", None),  # version 00 has four fields
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[1:]}-{SPAN}-01", None),
        (f"{TRACEPARENT}\n", None),
    ],
)
def test_traceparent_is_parsed_as_specified(header, expected):
    assert parse_traceparent(header) == expected


@pytest.mark.parametrize("given", ["a", "7f9c-42.b_C", "x" * 128])
def test_well_formed_request_id_is_repeated(client: TestClient, given):
    assert client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a;b", "é".encode("latin-1")])
def test_other_request_ids_are_replaced(client: TestClient, given):
    made = [client.get("/", headers={"X-Request-Id": given}).headers["x-request-id"] for _ in "ab"]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)
    assert made[0] != made[1]


@pytest.mark.parametrize("path", ["/segment", "/nothing", "/models/nothing"])
def test_errors_have_a_request_id(client: TestClient, path):
    answer = client.get(path, headers={"X-Request-Id": "mine"})
    assert answer.status_code >= 400
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_internal_error_has_a_request_id_and_is_logged_with_it(
    make_client: MakeClient, json_lines, monkeypatch
):
    client = make_client()

    def fail(*_args: object) -> None:
        raise ValueError("of a test")

    monkeypatch.setattr("app.api.segment.read_image", fail)
    answer = post(client, thirds(), {"X-Request-Id": "mine"})
    assert_problem(answer, 500)
    assert answer.headers.get_list("x-request-id") == ["mine"]
    crashed = [line for line in map(json.loads, json_lines) if "error" in line]
    assert crashed[0]["request_id"] == "mine"
    assert "ValueError: of a test" in crashed[0]["error"]
    (line,) = (line for line in responses(json_lines) if line["path"] == "/segment")
    assert (line["status"], line["request_id"]) == (500, "mine")


def test_line_of_a_response_has_its_fields(client: TestClient, json_lines):
    headers = {"X-Request-Id": "mine", "traceparent": TRACEPARENT}
    answer = client.get("/models/tiny?unused=1", headers=headers)
    (line,) = responses(json_lines)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(line.pop("time")))
    assert float(str(line.pop("duration_ms"))) > 0
    assert "GET /models/tiny 200 in" in str(line.pop("message"))
    assert line == {
        "level": "INFO", "logger": "segcal.access", "request_id": "mine",
        "trace_id": TRACE, "span_id": SPAN, "method": "GET", "path": "/models/tiny",
        "route": "/models/{model}", "status": 200, "bytes": len(answer.content),
    }  # fmt: skip


def test_lines_of_worker_threads_have_the_request_id(client: TestClient, json_lines, monkeypatch):
    def warn(*_args: object) -> float:
        logging.getLogger("app.test").warning("from a thread")
        return 0.0

    monkeypatch.setattr("app.api.segment.abstained_fraction", warn)
    assert post(client, thirds(), {"X-Request-Id": "mine"}).status_code == 200
    (line,) = (line for line in map(json.loads, json_lines) if line["logger"] == "app.test")
    assert line["request_id"] == "mine"


def test_text_line_ends_with_the_request_id(client: TestClient, text_lines):
    client.get("/healthz", headers={"X-Request-Id": "mine"})
    assert re.fullmatch(
        r"INFO segcal\.access: GET /healthz 200 in [\d.]+ ms request_id=mine", text_lines[-1]
    )


def test_path_can_not_end_a_line(client: TestClient, text_lines):
    client.get("/models/a%0AERROR%20b")
    (line,) = (line for line in text_lines if "segcal.access" in line)
    assert "\n" not in line
    assert "/models/a%0AERROR%20b" in line


def test_log_holds_no_image_and_no_token(make_client: MakeClient, json_lines):
    token = "token-that-must-not-be-logged"
    client = make_client(api_tokens=token, admin_token=f"admin-{token}")
    image = encoded(thirds())
    for authorization in (f"Bearer {token}", f"Bearer wrong-{token}", f"Basic {token}"):
        headers = {"Authorization": authorization, "Cookie": token}
        post(client, image, headers)
        post(client, image[:-9], headers)
        client.post(f"/calibrate?token={token}", headers=headers, content=token.encode())
        client.get(f"/results/unknown/mask.png?token={token}", headers=headers)
        client.post("/segment", files={"image": (f"{token}.png", image)}, headers=headers)
    text = "\n".join(json_lines)

    assert len(responses(json_lines)) >= 15
    assert token not in text
    assert "IDAT" not in text
    assert "PNG" not in text
