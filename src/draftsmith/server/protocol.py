"""uvicorn's HTTP protocol, which waits for ever for a request's header, with an end to its patience.

Without it, anybody who can connect can hold any number of connections open by sending nothing, or a byte now and then.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["patient_for"]


def patient_for(seconds: float) -> type[asyncio.Protocol]:
    """A protocol class that closes connections whose next request header is not whole within ``seconds``."""

    class TimedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]  # narrower than its base class
            self._wait_for_header()

        def data_received(self, data: bytes) -> None:
            cycle: Any = self.cycle
            if cycle is None or cycle.response_complete:
                self._wait_for_header()
            super().data_received(data)
            if self.cycle is not cycle:
                self._header_is_here()

        def connection_lost(self, exc: Exception | None) -> None:
            self._header_is_here()
            super().connection_lost(exc)

        def _wait_for_header(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def _header_is_here(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return TimedProtocol
