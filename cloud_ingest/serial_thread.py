"""A thread of its own for a client that blocks, so that calls come one after another and the program can still end.

An executor of the standard library would be joined when the interpreter exits, and a client that waits for a
broker which is gone would then hold the program up; this thread is a daemon.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class SerialThread:
    """Runs calls in order on one thread; made inside a running event loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    async def run(self, call: Callable[..., ResultT], *arguments: Any) -> ResultT:  # noqa: ANN401
        """Run `call(*arguments)` on the thread; cancelling the caller does not stop it."""
        future: asyncio.Future[ResultT] = self._loop.create_future()
        self._calls.put((future, lambda: call(*arguments)))
        return await future

    def post(self, call: Callable[..., object], *arguments: Any) -> None:  # noqa: ANN401
        """Run `call(*arguments)` on the thread, in its turn; nobody waits, and what it raises is lost."""
        self._calls.put((self._loop.create_future(), lambda: call(*arguments)))

    def stop(self) -> None:
        """End the thread after the calls that wait."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (one := self._calls.get()) is not None:
            future, call = one
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                self._answer(future, None, error)
            else:
                self._answer(future, result, None)

    def _answer(self, future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        def settle() -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more
