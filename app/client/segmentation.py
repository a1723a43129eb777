"""The arrays of a response, and images in the forms that a request takes."""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray

from app.errors import ArgumentError, InputError

ImageSource = bytes | str | os.PathLike[str] | NDArray[np.uint8]


@dataclass(frozen=True)
class Segmentation:
    """One image's labels and confidence, and their origin.

    `mask` is uint8 or uint16 [H,W] of class ids, its highest value where the service abstains;
    `confidence` is float32 [H,W] in 0..1, rounded to 11 bits. `calibrator` is a version id or
    "none". `guarantee` is one of
    `schemas.service.GUARANTEES` with `max_error`, None without. `id` leads to the response's other
    forms (`Client.result`), which the service keeps for a limited time.
    """

    id: str
    model: str
    calibrator: str
    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float32]
    guarantee: str | None = None

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """The pixels without a label, bool [H,W]."""
        abstained: NDArray[np.bool_] = self.mask == np.iinfo(self.mask.dtype).max
        return abstained


def read_segmentation(response: httpx2.Response) -> Segmentation:
    """Read the arrays and headers of a response of `POST /segment`; raises InputError."""
    body, headers = response.read(), response.headers
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            mask, confidence = arrays["mask"], arrays["confidence"].astype(np.float32)
        return Segmentation(
            headers["X-Result-Id"], headers["X-Model"], headers["X-Calibrator"], mask, confidence,
            headers.get("X-Guarantee"),
        )  # fmt: skip
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"expected a mask and a confidence, got {body[:80]!r}") from error


def encode_image(image: ImageSource) -> bytes:
    """Return the encoded bytes of an image: as they are, of a file, or of RGB uint8 [H,W,3] as PNG.

    Raises ArgumentError for another array.
    """
    if isinstance(image, bytes):
        return image
    if not isinstance(image, np.ndarray):
        return Path(image).read_bytes()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ArgumentError(
            f"expected an image uint8 [H,W,3], got {image.dtype} {list(image.shape)}"
        )
    from PIL import Image  # noqa: PLC0415 - most callers have encoded images

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
