"""From a generation to an HTTP answer: a stream of server-sent events or one JSON object, by the same events.

Either way the connection is watched: when the client leaves, its replies leave the batch before the next round.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from draftsmith.server.generation import PING, Event, Generation
from draftsmith.server.guard import send_json
from draftsmith.server.moderation import Moderator
from draftsmith.server.paced import Pacer
from draftsmith.server.problems import as_api_error
from draftsmith.server.shapes import Collected, Shape, tail, usage

__all__ = ["Answer"]


class Answer:
    """An ASGI application that answers one request with a generation, and closes it in the end."""

    def __init__(
        self,
        generation: Generation,
        shape: Shape,
        *,
        stream: bool,
        include_usage: bool,
        continuous_usage: bool,
        live: bool,
        send_s: float,
        pace_s: float = 0.0,
        moderator: Moderator | None = None,
    ) -> None:
        """``continuous_usage``: the counts so far with every chunk. ``live``: statistics with every chunk.

        ``send_s``: how long a client may take for a part. ``pace_s`` and ``moderator``: see ``ServerOptions``; under
        moderation a stream is written when all of it was judged.
        """
        self._generation = generation
        self._shape = shape
        self._stream = stream
        self._include_usage = include_usage
        self._continuous_usage = include_usage and continuous_usage
        self._live = live
        self._send_s = send_s
        self._pace_s = pace_s
        self._pacer: Pacer | None = None
        self._moderator = moderator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        """Answer until all is said or the client has gone."""
        try:
            work = asyncio.ensure_future(self._streamed(send) if self._stream else self._whole(send))
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                # First of all, since Python 3.11's wait_for may swallow a cancellation: then the work ends by itself.
                self._generation.close()
                work.cancel()
                gone.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)
        finally:
            self._generation.close()

    async def _whole(self, send: Send) -> None:
        choices = [Collected() for _ in self._generation.choices]
        try:
            async with aclosing(self._events()) as events:  # type: ignore[type-var]  # a generator
                async for event in events:
                    if event is not PING:
                        choices[event.index].add(event)
        except Exception as error:
            problem = as_api_error(error)
            await send_json(send, problem.status, problem.body(), problem.headers)
            return
        listed = [self._shape.choice(index, whole) for index, whole in enumerate(choices)]
        value = {**self._shape.head(streamed=False), "choices": listed, "usage": usage(self._generation)}
        await send_json(send, 200, {**value, **tail(self._generation)})

    async def _events(self) -> AsyncIterator[Event]:
        """The generation's; under moderation all at once, when the whole texts have been judged."""
        if self._moderator is None:
            async for event in self._generation.events():
                yield event
            return
        kept: list[Event] = []
        async for event in self._generation.events():
            if event is PING:
                yield event
            else:
                kept.append(event)
        for index in range(len(self._generation.choices)):
            await self._moderator.check("reply", "".join(event.text for event in kept if event.index == index))
        for event in kept:
            yield event

    async def _streamed(self, send: Send) -> None:
        """A stream, as it comes or at a fixed pace."""
        if not self._pace_s:
            await self._stream_all(send)
            return
        self._pacer = pacer = Pacer(lambda data: self._send(send, data), self._pace_s)
        ticking = asyncio.ensure_future(pacer.run())
        writing = asyncio.ensure_future(self._stream_all(send))
        try:
            await asyncio.wait((ticking, writing), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
                await asyncio.sleep(self._pace_s)
        finally:
            pacer.stop()
            ticking.cancel()
            writing.cancel()
            await asyncio.gather(ticking, writing, return_exceptions=True)
        await self._send(send, pacer.take(), more=False)

    async def _stream_all(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        head = self._shape.head(streamed=True)
        if self._include_usage:
            head["usage"] = None
        try:
            for index in range(len(self._generation.choices)):
                opening = self._shape.opening(index)
                if opening is not None:
                    await self._put(send, {**head, "choices": [opening]})
            unfinished = len(self._generation.choices)
            async with aclosing(self._events()) as events:  # type: ignore[type-var]  # a generator
                async for event in events:
                    unfinished -= event.finish_reason is not None
                    await self._put_event(send, head, event, last=not unfinished)
            if self._include_usage:
                whole = {**head, "choices": [], "usage": usage(self._generation), **tail(self._generation)}
                await self._put(send, whole)
        except Exception as error:
            await self._put(send, as_api_error(error).body())
        await self._write(send, b"data: [DONE]\n\n", more=False)

    async def _put_event(self, send: Send, head: dict[str, Any], event: Event, *, last: bool) -> None:
        """The chunks of an event.

        The statistics come with the last of all, or with the usage if that follows, or with every chunk if asked for.
        """
        if event is PING:
            await self._write(send, b": ping\n\n")
            return
        chunks = self._shape.chunk(event)
        for i, choice in enumerate(chunks):
            ends = self._live or (last and i == len(chunks) - 1 and not self._include_usage)
            counts = {"usage": usage(self._generation)} if self._continuous_usage else {}
            whole = {**head, **counts, "choices": [choice]}
            await self._put(send, {**whole, **tail(self._generation)} if ends else whole)

    async def _put(self, send: Send, value: dict[str, Any]) -> None:
        await self._write(send, b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n")

    async def _write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        """Now, or with the next tick. Raises TimeoutError when the client does not read."""
        if self._pacer is None:
            await self._send(send, data, more=more)
        else:
            self._pacer.put(data)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        message = {"type": "http.response.body", "body": data, "more_body": more}
        await asyncio.wait_for(send(message), self._send_s)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
