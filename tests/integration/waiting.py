"""How tests of real processes wait: for a condition, with a limit."""

import time
from collections.abc import Callable

from deploy.dev.ground import ended


def wait_until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    return not ended(pid)
