"""Host names to addresses, without asyncio's thread pool.

asyncio resolves names in a few shared threads and waits for them when the loop ends: one dead name server would
delay every other name, and the end of the program by up to half a minute. Here each question has a thread of its
own that nobody waits for.
"""

import asyncio
import ipaddress
import socket
import threading


async def resolve(host: str, timeout_s: float) -> str:
    """Return an IP address of `host`, itself where it is one; raises OSError (TimeoutError among them)."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def deliver(address: str | None, error: OSError | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        elif address is not None:
            answer.set_result(address)

    def ask() -> None:
        outcome: tuple[str | None, OSError | None]
        try:
            outcome = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]), None
        except OSError as error:
            outcome = None, error
        except UnicodeError as error:
            outcome = None, OSError(str(error))
        try:
            loop.call_soon_threadsafe(deliver, *outcome)
        except RuntimeError:
            return  # the loop has ended meanwhile; nobody asks any more

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await answer
