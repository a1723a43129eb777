"""`python -m tests.faults.overload`: ten times more clients than the service has places.

Prints as JSON the statuses, the time of a rejection in ms, the time until the service responds
again once the clients have stopped, in s, and the memory before and after in KiB.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.factories.service import WORKERS, encoded
from tests.fuzz.campaign import resident_kib, serving, write_service
from tests.fuzz.probe import Answer, send
from tests.fuzz.targets import Request

QUEUE_LIMIT = 8
TIMES = 10
SECONDS = 20.0
RETRY_S = 1.0  # as Retry-After


def image() -> bytes:
    """Encode an image of 1.5 megapixels in some 10 KB, which takes tens of milliseconds."""
    return encoded(np.full((1000, 1500, 3), 128, np.uint8))


def main() -> None:
    """Overload a server of the tiny model for `SECONDS`."""
    request = Request("POST", "/segment", {"Content-Type": "image/png"}, image())
    with tempfile.TemporaryDirectory() as name:
        write_service(Path(name))
        with serving(Path(name), QUEUE_LIMIT=str(QUEUE_LIMIT), WORKERS=str(WORKERS)) as (pid, port):
            for _ in range(20):
                send(port, request)
            before, end = resident_kib(pid), time.monotonic() + SECONDS

            def client(_: int) -> list[Answer]:
                answers = []
                while time.monotonic() < end:
                    answers.append(send(port, request))
                    if answers[-1].status == 429:
                        time.sleep(RETRY_S)
                return answers

            count = TIMES * (WORKERS + QUEUE_LIMIT)
            with ThreadPoolExecutor(count) as pool:
                answers = [answer for each in pool.map(client, range(count)) for answer in each]
            stopped = time.perf_counter()
            assert send(port, request).status == 200
            recovered_s = time.perf_counter() - stopped
            time.sleep(5)
            after = resident_kib(pid)
    rejections = [answer.seconds * 1000 for answer in answers if answer.status == 429]
    found = {
        "clients": count,
        "statuses": dict(Counter(answer.status for answer in answers)),
        "rejection_ms": {
            "median": round(statistics.median(rejections), 1), "max": round(max(rejections), 1)
        },
        "recovered_s": round(recovered_s, 3),
        "memory_kib": {"before": before, "after": after},
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
