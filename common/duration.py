"""Durations as people write them on a command line: 250ms, 10s, 5m, 1h, 2d."""

import argparse
import re

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")


def duration_s(text: str) -> float:
    """Parse a duration to seconds, for argparse's `type=`; a bare number means seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write for example 250ms, 10s, 5m or 1h")
    return float(match[1]) * _UNITS_S[match[2]]
