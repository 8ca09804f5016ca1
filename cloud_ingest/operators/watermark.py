"""The watermark of a partition: up to when its readings are taken to be complete.

In: event times, the wall clock (passed in). Out: a time in microseconds that never goes back. Nothing fails.

Watermark = latest event time seen - allowed lateness, where an event time beyond wall clock + 1 minute counts as that:
one gateway with a clock a year ahead must not close everybody's windows for a year. A partition that has been silent
for `idle_timeout_us` goes by the wall clock, so that its last windows are emitted. Who comes later than the watermark
revises its window; nothing is dropped for being late.
"""

from dataclasses import dataclass
from typing import Final

FUTURE_CAP_US: Final = 60_000_000
NEVER_US: Final = -(1 << 62)
"""The watermark of a partition of which nothing was ever seen: everything is in time."""


@dataclass(frozen=True, slots=True)
class WatermarkSettings:
    """Durations in microseconds."""

    allowed_lateness_us: int
    idle_timeout_us: int


def after_readings(settings: WatermarkSettings, watermark_us: int, latest_us: int, now_us: int) -> int:
    """Return the watermark after readings of which the latest is of `latest_us` arrived at `now_us`."""
    return max(watermark_us, min(latest_us, now_us + FUTURE_CAP_US) - settings.allowed_lateness_us)


def after_silence(settings: WatermarkSettings, watermark_us: int, quiet_since_us: int, now_us: int) -> int:
    """Return the watermark of a partition whose last reading arrived at `quiet_since_us`."""
    if now_us - quiet_since_us < settings.idle_timeout_us:
        return watermark_us
    return max(watermark_us, now_us - settings.allowed_lateness_us)
