"""Whether a server's memory grows with the requests it has answered: `python -m benchmarks.memory`.

Several clients send images of many sizes to one real server. What matters is its memory after
all requests against that after a tenth of them, when each kind of work has been done.
"""

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from benchmarks.own_server import MIB, memory, serving, table
from benchmarks.tail import image

SIZES = ((90, 120), (120, 360), (240, 320), (360, 480), (480, 360), (480, 640), (720, 960))
TENTHS = (1, 2, 5, 10)
ANSWERS = (
    {"Accept": "application/json"},
    {"Accept": "image/png"},
    {"Accept": "application/x-npz"},
)


def bodies(count: int) -> list[bytes]:
    """Make images of many sizes, no two of the same."""
    rng = random.Random(0)
    return [
        image(height + rng.randrange(32), width + rng.randrange(32), seed)
        for seed, (height, width) in enumerate(rng.choices(SIZES, k=count))
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="camvid-street")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--result-bytes", type=int, default=32 * MIB)
    options = parser.parse_args()
    images = bodies(200)
    settings = {"DEFAULT_MODEL": options.model, "RESULT_BYTES": options.result_bytes}
    with (
        serving(options.models, **settings) as server,
        httpx2.Client(base_url=server.url, timeout=600) as client,
        ThreadPoolExecutor(options.clients) as pool,
    ):

        def ask(number: int) -> None:
            headers = {"Content-Type": "image/jpeg"} | ANSWERS[number % len(ANSWERS)]
            body = images[number * 7919 % len(images)]
            client.post("/segment", content=body, headers=headers).raise_for_status()

        seen, done = {0: memory(server.pid)}, 0
        for tenths in TENTHS:
            until = options.requests * tenths // 10
            list(pool.map(ask, range(done, until)))
            seen[until], done = memory(server.pid), until
        peak = memory(server.pid, "VmHWM")
    first = seen[options.requests // 10]
    rows = [[str(n), f"{rss / MIB:.0f}", f"{rss / first:.3f}"] for n, rss in seen.items()]
    rows.append(["peak", f"{peak / MIB:.0f}", f"{peak / first:.3f}"])
    print(table(["requests answered", "resident, MiB", "of that after a tenth"], rows))


if __name__ == "__main__":
    main()
