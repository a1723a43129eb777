"""Child process of `decoder_pool`: decode images from its input until that ends.

A request is a line of JSON, `{"bytes": B, "max_pixels": M}` with the fields of `Scaling`, and B
bytes of an encoded image. The response is a line `{"height": H, "width": W}` and the pixels, or
`{"error": NAME, "detail": TEXT}`.
"""

import json
import sys
from typing import Any, BinaryIO

from app.errors import InputError
from app.imaging.decode import ImageArray, decode_image
from app.imaging.tiff_bands import Scaling


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Decode each requested image, until the input ends."""
    while line := requests.readline():
        request = json.loads(line)
        pixels: ImageArray | None = None
        answer: dict[str, object]
        try:
            scaling = Scaling(as_tuple(request["levels"]), as_tuple(request["bands"]))
            data = requests.read(request["bytes"])
            pixels = decode_image(data, request["max_pixels"], scaling)
            answer = {"height": pixels.shape[0], "width": pixels.shape[1]}
        except InputError as error:
            answer = {"error": type(error).__name__, "detail": str(error)}
        responses.write(json.dumps(answer).encode() + b"\n")
        if pixels is not None:
            responses.write(pixels.data)
        responses.flush()


def as_tuple(values: list[int] | None) -> Any:  # noqa: ANN401 - of two or three numbers
    """Convert a list of JSON to the tuple that it was written from."""
    return None if values is None else tuple(values)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
