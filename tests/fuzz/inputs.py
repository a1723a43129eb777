"""Valid inputs that the fuzz targets mutate: images of each format, and calibration uploads."""

import numpy as np
from PIL import Image

from tests.factories.service import encoded, solid, thirds
from tests.factories.validation_data import archive, as_table, npy, npz, overconfident, tensors

RAMP = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
GREY = Image.fromarray(RAMP[..., 0])
DEEP = Image.fromarray(RAMP[..., 0].astype(np.uint16) * 257)
PALETTE = Image.fromarray(RAMP).quantize(16)
ALPHA = Image.fromarray(RAMP).convert("RGBA")
IMAGES: dict[str, bytes] = {  # by kind; each is accepted by POST /segment
    "jpeg": encoded(RAMP, "JPEG"),
    "jpeg progressive": encoded(RAMP, "JPEG", progressive=True),
    "jpeg cmyk": encoded(Image.fromarray(RAMP).convert("CMYK"), "JPEG"),
    "png": encoded(RAMP),
    "png palette": encoded(PALETTE),
    "png 16 bit": encoded(DEEP),
    "png alpha": encoded(ALPHA),
    "webp": encoded(RAMP, "WEBP"),
    "webp lossless": encoded(RAMP, "WEBP", lossless=True),
    "tiff": encoded(RAMP, "TIFF"),
    "tiff lzw": encoded(RAMP, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(RAMP, "TIFF", compression="jpeg"),
    "tiff 16 bit": encoded(DEEP, "TIFF"),
    "bmp": encoded(RAMP, "BMP"),
    "bmp palette": encoded(PALETTE, "BMP"),
    "grey": encoded(GREY),
    "small": encoded(thirds()),
}

LOGITS, LABELS = overconfident(images=4, height=2, width=3)
ROWS, ROW_LABELS, INDEX = as_table(LOGITS, LABELS)
UPLOADED_IMAGES = {f"{name}.png": encoded(solid((255, 0, 0))) for name in "ab"}
LABEL_MAP = encoded(Image.fromarray(np.ones((8, 12), np.uint8)))
LABEL_MAPS = {f"{name}.png": LABEL_MAP for name in "ab"}
ZIPS = {"images": archive(UPLOADED_IMAGES), "labels": archive(LABEL_MAPS)}
FIELDS: dict[str, tuple[str, dict[str, bytes]]] = {  # by kind: the mutated field, and all fields
    "npy": ("logits", {"logits": npy(LOGITS), "labels": npy(LABELS)}),
    "npy labels": ("labels", {"logits": npy(LOGITS), "labels": npy(LABELS)}),
    "npz": ("logits", {"logits": npz(logits=LOGITS, labels=LABELS)}),
    "npz deflated": ("logits", {"logits": npz(compressed=True, logits=LOGITS, labels=LABELS)}),
    "safetensors": ("logits", {"logits": tensors(logits=LOGITS, labels=LABELS)}),
    "table": (
        "image_index",
        {"logits": npy(ROWS), "labels": npy(ROW_LABELS), "image_index": npy(INDEX)},
    ),
    "zip of images": ("images", ZIPS),
    "zip of label maps": ("labels", ZIPS),
}
