"""Streams whose packets tell nothing: equal sizes at equal intervals, whatever was written in between.

How much of a draft was accepted shows in the sizes and times of a stream's packets, encrypted or not, and that tells
something of the text (arXiv:2411.01076). Here what is written waits for the next tick and goes out with a comment that
fills it up to a whole number of blocks; a tick with nothing to say sends a block, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["BLOCK", "Pacer"]

BLOCK = 1024  # bytes
_SHORTEST = 4  # of a comment: a colon, and the line and the event ended


class Pacer:
    """Collects data and hands it to ``send`` every ``interval_s`` seconds, in whole blocks."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._waiting = bytearray()
        self._stopped = False

    def put(self, data: bytes) -> None:
        """Whole events, for the next tick."""
        self._waiting += data

    async def run(self) -> None:
        """Send on every tick until ``stop``. Raises what ``send`` raises."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopped:
            due += self._interval_s
            await asyncio.sleep(due - loop.time())
            await self._send(self.take())

    def stop(self) -> None:
        """No more ticks. Cancelling ``run`` is not enough: Python 3.11's ``wait_for`` in ``send`` may swallow that."""
        self._stopped = True

    def take(self) -> bytes:
        """All that waits, filled up; one block at least."""
        data = bytes(self._waiting)
        self._waiting.clear()
        missing = -len(data) % BLOCK or (0 if data else BLOCK)
        if 0 < missing < _SHORTEST:
            missing += BLOCK
        return data + (b":" + b" " * (missing - 3) + b"\n\n" if missing else b"")
