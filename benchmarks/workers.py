"""Each engine of a comparison in a process of its own: their libraries share names, and their threads do not mix.

Only one works at a time; the others wait for a message and cost nothing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import PeerMissingError, Reply

__all__ = ["Runner", "Worker"]

Runner = Callable[[Sequence[int]], Reply]  # prompt ids to a reply


class Worker:
    """``make(**options)`` runs in a child process and gives runners by name; call them through ``runners``.

    Raises PeerMissingError when ``make`` does. Close it, or use it as a context: the child ends with it.
    """

    def __init__(self, make: Callable[..., Mapping[str, Runner]], **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, options), daemon=True)
        self._process.start()
        theirs.close()
        names = self._receive()
        self.runners: dict[str, Runner] = {name: self._runner(name) for name in names}

    def _runner(self, name: str) -> Runner:
        def run(prompt_ids: Sequence[int]) -> Reply:
            self._ours.send((name, list(prompt_ids)))
            reply = self._receive()
            assert isinstance(reply, Reply)
            return reply

        return run

    def _receive(self) -> Any:
        try:
            value = self._ours.recv()
        except EOFError:
            raise PeerMissingError("an engine's process ended without an answer; leave this peer out") from None
        if isinstance(value, PeerMissingError):
            self.close()
            raise value
        return value

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Any, make: Callable[..., Mapping[str, Runner]], options: Mapping[str, Any]) -> None:
    try:
        runners = make(**options)
    except PeerMissingError as error:
        pipe.send(error)
        return
    pipe.send(list(runners))
    while True:
        try:
            name, prompt_ids = pipe.recv()
        except EOFError:
            return
        pipe.send(runners[name](prompt_ids))
