"""Waits before a request that was rejected for the time being is sent again."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

RETRIED = (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE)
FIRST_WAIT_S = 0.5  # without a Retry-After; then twice as long each time


@dataclass(frozen=True)
class RetryPolicy:
    """Number of times a request is sent again, and the longest wait before one, in seconds."""

    retries: int = 4
    max_wait_s: float = 30.0

    def waits(self) -> Iterator[float]:
        """Yield the waits in seconds for responses without a Retry-After."""
        for attempt in range(self.retries):
            yield min(FIRST_WAIT_S * 2**attempt, self.max_wait_s)

    def wait_s(self, response: httpx2.Response, default_s: float | None) -> float | None:
        """Return the seconds to wait, at most `max_wait_s`; None where no retry is due.

        `default_s` is the next of `waits`, None after the last.
        """
        if response.status_code not in RETRIED or default_s is None:
            return None
        given = parse_retry_after(response.headers.get("Retry-After", ""))
        return default_s if given is None else min(given, self.max_wait_s)


def parse_retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After, a number or an HTTP date; None for another value."""
    if value.strip().isdecimal():
        return float(value)
    try:
        due = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (due.replace(tzinfo=due.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
