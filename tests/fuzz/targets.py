"""Fuzz targets: each makes a hostile request from a seed, the same one each time."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

from tests.fuzz.inputs import FIELDS, IMAGES
from tests.fuzz.mutations import mutated

ADMIN_TOKEN = "a token for the fuzz tests"
BOUNDARY = "segcal-fuzz-boundary"
TEXTS = (
    "", "0", "-1", "1", "0.5", "1e309", "nan", "inf", "null", "true", "[]", "{}", "a" * 5000,
    "../../etc/passwd", "%00", "\x00", "\r\nX-A: b", "äöü", "\U0001f600", "none", "active",
    "20260101T000000Z-temperature-abcdef", "tiny", "'; --", "*/*;q=-1", "image/png;q=nan",
    "text/html, */*;q=0.0001", "Bearer", "Bearer \x00", "bytes=0-", "00-" + "0" * 32 + "-1-01",
    "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "gzip", "chunked", "100-continue", "4294967296",
)  # fmt: skip
OPTIONS = (
    "model", "calibrator", "min_confidence", "max_error", "tta", "include", "output", "depth",
    "unknown", "method", "limit",
)  # fmt: skip
HEADERS = (
    "Accept", "Authorization", "Content-Type", "Range", "If-None-Match", "Origin", "X-Request-Id",
    "traceparent", "tracestate", "Cookie", "Accept-Encoding", "X-Forwarded-For", "Host",
    "Content-Encoding",
)  # fmt: skip
PATHS = (
    "/segment", "/results/{}/mask.png", "/results/{}/data.npz", "/models", "/models/{}",
    "/calibrate", "/calibrate/{}", "/calibrate/{}/events", "/calibrate/{}/retry", "/calibrators",
    "/calibrators/{}", "/calibrators/{}/report", "/calibrators/{}/reliability.svg",
    "/calibrators/{}/archive", "/calibrators/{}/activate", "/metrics", "/healthz", "/readyz",
    "/docs", "/openapi.json", "/", "/static/{}", "/docs/assets/{}", "/{}",
)  # fmt: skip
READING = ("GET", "GET", "HEAD", "POST")
METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW")


@dataclass(frozen=True)
class Request:
    """A request; `expected` are the statuses of 500 and above that are correct for it."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    expected: frozenset[int] = frozenset()

    def encode(self) -> bytes:
        """Encode the request as HTTP/1.1."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: fuzz", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + self.body


def form_body(files: Mapping[str, bytes], fields: Mapping[str, str]) -> bytes:
    """Encode a multipart body of files and text fields."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files.items()
    ]
    parts += [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


def image(seed: int) -> Request:
    """Mutate an image that is sent as a raw body, with options that are valid."""
    draw = random.Random(seed)
    data = mutated(IMAGES[draw.choice(sorted(IMAGES))], seed)
    query = {"tta": draw.choice(("none", "none", "flip", "multiscale"))}
    if draw.random() < 0.3:
        query["output"] = draw.choice(("mask", "confidence", "heatmap", "overlay"))
    kind = draw.choice(("image/png", "image/*", "image/jpeg"))
    return Request("POST", f"/segment?{urlencode(query)}", {"Content-Type": kind}, data)


def image_form(seed: int) -> Request:
    """Mutate a whole multipart body that holds an image."""
    kind = random.Random(seed).choice(sorted(IMAGES))
    return Request("POST", "/segment", FORM, mutated(form_body({"image": IMAGES[kind]}, {}), seed))


def upload(seed: int) -> Request:
    """Mutate one file of a calibration upload."""
    draw = random.Random(seed)
    name, files = FIELDS[draw.choice(sorted(FIELDS))]
    body = form_body({**files, name: mutated(files[name], seed)}, {"method": "identity"})
    return Request("POST", "/calibrate", FORM | ADMIN, body)


def upload_form(seed: int) -> Request:
    """Mutate a whole multipart body of a calibration upload."""
    draw = random.Random(seed)
    _, files = FIELDS[draw.choice(sorted(FIELDS))]
    body = form_body(files, {"method": "identity", "note": draw.choice(TEXTS)})
    return Request("POST", "/calibrate", FORM | ADMIN, mutated(body, seed))


def options(seed: int) -> Request:
    """Combine paths, methods, query options and headers with texts that parsers treat specially."""
    draw = random.Random(seed)
    template = "/segment" if draw.random() < 0.5 else draw.choice(PATHS)
    path = template.format(quote(draw.choice(TEXTS)[:200], safe=draw.choice(("", "/%"))))
    query = {name: draw.choice(TEXTS) for name in draw.sample(OPTIONS, draw.randint(0, 3))}
    headers = {name: draw.choice(TEXTS) for name in draw.sample(HEADERS, draw.randint(0, 3))}
    headers = {name: "".join(c for c in v if c not in "\r\n\0") for name, v in headers.items()}
    method = "POST" if template == "/segment" else draw.choice((*READING, draw.choice(METHODS)))
    body = IMAGES["small"] if draw.random() < 0.7 else draw.choice(TEXTS).encode()
    if draw.random() < 0.6:
        headers["Content-Type"] = "image/png"
    if template.endswith(("activate", "retry")) and draw.random() < 0.5:
        headers |= ADMIN
    return Request(method, f"{path}?{urlencode(query)}" if query else path, headers, body)


def http(seed: int) -> bytes:
    """Mutate the bytes of a whole request."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        request = Request("POST", "/segment", {"Content-Type": "image/png"}, IMAGES["small"])
        return mutated(request.encode(), seed)
    body = json.dumps({"a": draw.choice(TEXTS)}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:]) if part)
    head = b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nConnection: close\r\n"
    return mutated(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", seed)


Target = Callable[[int], Request | bytes]
SHARES = {"image": 3, "image_form": 2, "upload": 1, "upload_form": 1, "options": 2, "http": 1}
TARGETS: dict[str, Target] = {
    target.__name__: target for target in (image, image_form, upload, upload_form, options, http)
}
