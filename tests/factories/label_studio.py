"""The part of Label Studio's API that the service reads, on a socket: a project of brush labels."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.imaging import encode_brush

TOKEN = "0123456789abcdef"
CONFIG = """<View><Image name="photo" value="$image"/>
<BrushLabels name="kind" toName="photo">
  <Label value="Class-0"/><Label value="class-1"/><Label value="class-2"/><Label value="other"/>
</BrushLabels></View>"""


@dataclass
class LabelStudio:
    """Tasks, annotations and files; `requests` lists (path, Authorization) of what was read."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def add_task(self, number: int, image: bytes) -> dict[str, Any]:
        """Add a task with an uploaded image; return what Label Studio sends to predict it."""
        path = f"/data/upload/1/{number}.png"
        self.files[path] = image
        self.tasks[number] = {"id": number, "project": 1, "data": {"image": path}}
        return self.tasks[number]

    def annotate(self, task: int, labels: NDArray[np.integer], **changes: object) -> int:
        """Add an annotation that paints the classes of a label map; return its id."""
        result = [
            {
                "from_name": "kind", "to_name": "photo", "type": "brushlabels",
                "original_height": labels.shape[0], "original_width": labels.shape[1],
                "image_rotation": 0,
                "value": {
                    "format": "rle", "rle": encode_brush(labels == k),
                    "brushlabels": ["Class-0" if k == 0 else f"class-{k}"],
                },
            }
            for k in range(3)
        ]  # fmt: skip
        number = 1000 + task
        values = {"id": number, "task": task, "result": result, "was_cancelled": False}
        self.annotations[number] = values | changes
        return number

    def answer(self, path: str, authorization: str) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers of a request."""
        if path in self.redirects:
            return 302, b"", {"Location": self.redirects[path]}
        if path.startswith("/open/"):
            return 200, self.files[path], {}
        if authorization != f"Token {TOKEN}":
            return 401, b"{}", {}
        kind, _, rest = path.removeprefix("/api/").partition("/")
        found: object = self.files.get(path)
        if isinstance(found, bytes):
            return 200, found, {}
        if kind == "projects":
            found = {"id": 1, "label_config": CONFIG}
        elif kind in ("tasks", "annotations"):
            found = (self.tasks if kind == "tasks" else self.annotations).get(int(rest.strip("/")))
        return (404, b"{}", {}) if found is None else (200, json.dumps(found).encode(), {})


@contextmanager
def open_label_studio() -> Iterator[LabelStudio]:
    """Serve an empty project on a socket."""
    studio = LabelStudio()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization", "")
            studio.requests.append((self.path, authorization))
            status, body, headers = studio.answer(self.path, authorization)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - of the base
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        studio.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield studio
        finally:
            server.shutdown()
            thread.join()
