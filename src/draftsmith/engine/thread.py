"""An engine in a thread of its own: requests come from any thread, rounds go to async code or to whoever waits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from draftsmith.engine.batch import Engine, EngineStats
from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.engine.task import Task
from draftsmith.errors import QueueFull
from draftsmith.speculate import Round
from draftsmith.types import Request

__all__ = ["AsyncReply", "EngineThread"]


class EngineThread:
    """Runs an ``Engine``, which nobody else may touch from then on. Use it as a context manager, or call ``close``.

    The model's forwards run without the interpreter's lock, so other threads (an event loop that answers health checks)
    go on while a long prompt is read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: deque[Task] = deque()
        self._changed = threading.Condition()
        self._accepting = self._running = True
        self._stats = engine.stats
        self._news: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}  # of the step under way
        self._thread = threading.Thread(target=self._serve, name="draftsmith-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> EngineThread:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def stats(self) -> EngineStats:
        """The engine's, as of its last step."""
        return self._stats

    def submit(
        self, request: Request, options: RequestOptions | None = None, wake: Callable[[], object] | None = None
    ) -> Handle:
        """Queue a request and return at once. ``wake`` is called in the engine's thread for all news; it must be quick.

        Raises QueueFull, also after ``close`` has begun, PromptTooLong, UsageError.
        """
        task = self._engine.prepare(request, options, wake)
        with self._changed:
            self.check_room()
            self._inbox.append(task)
            self._changed.notify_all()
        return task.handle

    def check_room(self) -> None:
        """Raises QueueFull when ``submit`` would at this moment."""
        if not self._accepting:
            raise QueueFull("the engine is shutting down and takes no more requests; try again when it is back")
        self._engine.check_queue(len(self._inbox) + self._engine.num_waiting)

    def open(self, request: Request, options: RequestOptions | None = None) -> AsyncReply:
        """Queue a request from within an event loop and return at once. Raises what ``submit`` does."""
        return AsyncReply(lambda news: self.submit(request, options, self.waker(news)))

    def waker(self, news: asyncio.Event) -> Callable[[], object]:
        """A ``wake`` for ``submit`` that sets ``news`` in the running event loop.

        All that a step brings is told at once, when a model of the next step is about to compute: woken earlier, the
        loop would fight for the interpreter's lock with the texts that come after, and with their drafts.
        """
        loop = asyncio.get_running_loop()
        return lambda: self._news.setdefault(loop, []).append(news)

    def wait(self, handle: Handle, timeout: float | None = None) -> bool:
        """Block until the request is finished; False when ``timeout`` seconds did not suffice."""
        with self._changed:
            return self._changed.wait_for(lambda: handle.finished, timeout)

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, give those under way ``drain_s`` seconds to finish, end the rest and the thread."""
        with self._changed:
            self._accepting = False
            self._changed.wait_for(lambda: self._idle, drain_s)
            self._running = False
            self._changed.notify_all()
        self._thread.join()

    @property
    def _idle(self) -> bool:
        return not self._inbox and self._engine.idle

    def _serve(self) -> None:
        """Step while there is work, sleep while there is none."""
        while True:
            with self._changed:
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._idle or not self._running)
                if not self._running:
                    break
                while self._inbox:
                    self._engine.enqueue(self._inbox.popleft())
            try:
                self._engine.step(self._tell)
            except Exception:  # the step has ended the requests that ran
                logging.getLogger(__name__).exception("a step of the engine failed")
            self._stats = self._engine.stats
            if self._engine.idle:
                self._tell()
        self._engine.abandon()
        while self._inbox:
            self._inbox.popleft().handle.end()
        self._tell()
        with self._changed:
            self._changed.notify_all()

    def _tell(self) -> None:
        told, self._news = self._news, {}
        for loop, news in told.items():
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_set_all, news)


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


class AsyncReply:
    """A request as async code sees it: ``async for written in reply.rounds()``."""

    def __init__(self, submit: Callable[[asyncio.Event], Handle]) -> None:
        """``submit(news)`` gives the handle, whose news set the event."""
        self._news = asyncio.Event()
        self.handle = submit(self._news)

    async def rounds(self) -> AsyncGenerator[Round, None]:
        """The rounds as they are written. Leaving the iteration, in whatever way, cancels the request.

        It ends early when the request is cancelled, and raises what went wrong with the request.
        """
        try:
            finished = False
            while not finished:
                await self._news.wait()
                self._news.clear()
                finished = self.handle.finished
                for written in self.handle.take():
                    yield written
            if self.handle.error is not None:
                raise self.handle.error
        finally:
            self.handle.cancel()
