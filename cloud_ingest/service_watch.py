"""Watching a service: whether it is there, how long to wait for it, and trying until it answers.

In: attempts that fail with ServiceError while the service is away. Out: their results; a gauge, an event when it goes
and when it is back, what /health shows. Fails with StoppingError when the program is to end in the middle of waiting.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Gauge

from common.clock import Clock, iso8601
from common.errors import ForebayError, ServiceError

log = structlog.get_logger()

ResultT = TypeVar("ResultT")

_BACKOFF_S_MIN: Final = 0.2
_BACKOFF_S_MAX: Final = 5.0


class StoppingError(ForebayError):
    """The worker is to end while it waits for a service."""


class ServiceWatch:
    """Whether a service is there: says so when that changes, once, and paces the attempts to reach it."""

    def __init__(self, name: str, gauge: Gauge, clock: Clock, stop: asyncio.Event) -> None:
        self._name = name
        self._gauge = gauge
        self._clock = clock
        self._stop = stop
        self._attempts = 0
        self.up: bool | None = None
        self.since_us = clock.now_us()
        self.error = ""
        gauge.set(0)

    @property
    def stopping(self) -> bool:
        """Whether the worker is to end."""
        return self._stop.is_set()

    async def insist(
        self,
        attempt: Callable[[], Awaitable[ResultT]],
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> ResultT:
        """Repeat `attempt` until the service is there; `meanwhile` as in `wait`."""
        while True:
            try:
                result = await attempt()
            except ServiceError as error:
                await self.wait(error, meanwhile)
            else:
                self.succeeded()
                return result

    async def wait(self, error: ServiceError, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        """Wait before the next attempt, calling `meanwhile` once; raises StoppingError when the worker is to end."""
        delay = self.failed(error)
        if meanwhile is not None:
            await meanwhile()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay)
        if self.stopping:
            raise StoppingError("stopped while waiting for a service") from error

    def failed(self, error: object) -> float:
        """Take note of a failure; returns how long to wait before the next attempt."""
        self.error = str(error)
        if self.up is not False:
            self.up, self.since_us = False, self._clock.now_us()
            self._gauge.set(0)
            log.error("service.unreachable", service=self._name, error=self.error, hint="trying again until it answers")
        self._attempts += 1
        delay = min(_BACKOFF_S_MAX, _BACKOFF_S_MIN * 2 ** min(self._attempts - 1, 10))
        return float(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads workers, guards nothing

    def succeeded(self) -> None:
        """Take note that the service answers."""
        self._attempts = 0
        if self.up is not True:
            away_s = round((self._clock.now_us() - self.since_us) / 1e6, 1) if self.up is False else None
            self.up, self.since_us, self.error = True, self._clock.now_us(), ""
            self._gauge.set(1)
            log.info("service.reachable", service=self._name, **({} if away_s is None else {"away_s": away_s}))

    def state(self) -> dict[str, Any]:
        """Return what /health shows."""
        shown: dict[str, Any] = {"up": bool(self.up), "since": iso8601(self.since_us)}
        return shown | ({"error": self.error} if self.error else {})


async def wait_for_all(*attempts: Coroutine[Any, Any, object]) -> None:
    """Wait for several services at once, so that each says what it lacks; the first error ends the others."""
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
