"""Numbers in docs/operations.md are those of the code."""

from pathlib import Path

import pytest

from app.api.connections import FREE_CHUNKS, MIN_CHUNK_BYTES
from app.api.middleware import DRAIN_BYTES, DRAIN_S, STRIDE
from app.api.responses import PIECE
from app.imaging.decode import MAX_SCANS
from app.imaging.decoder_pool import DECODE_S, SMALL_TIFF_BYTES, SMALL_WORK
from app.jobs.process import GRACE_S
from app.serving.memory import PROBE_PIXELS
from app.settings import MEBI, SHUTDOWN_RESERVE_S

TEXT = " ".join((Path(__file__).parents[1] / "docs" / "operations.md").read_text("utf-8").split())


@pytest.mark.parametrize(
    "phrase",
    [
        f"scans of a JPEG: {MAX_SCANS} times `SEGCAL_MAX_PIXELS`",
        f"an image above {SMALL_WORK / 1e6:.0f} megapixels or so, or a TIFF above"
        f" {SMALL_TIFF_BYTES // MEBI} MiB | {DECODE_S:.0f} s, in a child process",
        f"{PROBE_PIXELS // MEBI} megapixel is always accepted",
        f"| {STRIDE >> 10} KiB, or the end, within each `SEGCAL_UPLOAD_TIMEOUT_S`",
        f"| {STRIDE >> 10} KiB, or the rest, within each `SEGCAL_DOWNLOAD_TIMEOUT_S`",
        f"| {FREE_CHUNKS}, and one for each {MIN_CHUNK_BYTES} bytes |",
        f"of which requests have {SHUTDOWN_RESERVE_S:.0f} s less",
        f"| {GRACE_S:.0f} s, in which one that is publishing finishes |",
        f"| at most {DRAIN_BYTES // MEBI} MiB, for at most {DRAIN_S:.0f} s, are read and discarded",
        f"Responses above {PIECE >> 10} KiB are written to an unnamed file",
    ],
)
def test_number_is_that_of_the_code(phrase):
    assert phrase in TEXT
