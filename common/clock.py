"""Time, passed in: int64 microseconds since the epoch, UTC, plus a monotonic clock for intervals."""

import time
from datetime import UTC, datetime
from typing import Protocol

US_PER_SECOND = 1_000_000
US_PER_MS = 1_000


class Clock(Protocol):
    """Where code asks for the time, so that tests can jump it."""

    def now_us(self) -> int:
        """Wall clock in microseconds since the epoch, UTC; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        """Wall clock in microseconds since the epoch, UTC; may jump."""
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""
        return time.monotonic()


def iso8601(us: int) -> str:
    """Render microseconds since the epoch as ISO 8601 in UTC, for people.

    Instants outside the years 1 to 9999 (legal on the wire) come back as `<n> us`.
    """
    try:
        return datetime.fromtimestamp(us / US_PER_SECOND, tz=UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{us} us"
