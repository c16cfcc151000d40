"""A command that judges prompts and replies. Off by default; once asked for, whatever goes wrong with it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from draftsmith.errors import UsageError
from draftsmith.server.problems import ApiError

__all__ = ["Moderator"]

_AT_ONCE = 4
_TIME_S = 10.0


class Moderator:
    """Runs ``command`` for every text, with ``{"kind": "prompt" | "reply", "text": ...}`` on its standard input.

    Exit code 0 lets the text pass, 1 refuses it. Any other code, no answer within ``time_s``, or a command that cannot
    be run is no judgement, and refuses too.
    """

    def __init__(self, command: str, *, time_s: float = _TIME_S) -> None:
        """Raises UsageError when ``command`` cannot be split into words."""
        try:
            self._words: Sequence[str] = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"the moderation command {command!r} cannot be read ({error})") from None
        if not self._words:
            raise UsageError("the moderation command is empty; name a program")
        self._time_s = time_s
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def check(self, kind: Literal["prompt", "reply"], text: str) -> None:
        """Raises ApiError unless the command lets ``text`` pass: 400 where it refuses, 503 where it does not judge."""
        async with self._places:
            try:
                code = await asyncio.wait_for(
                    self._run(json.dumps({"kind": kind, "text": text}).encode()), self._time_s
                )
            except (OSError, TimeoutError) as error:
                logging.getLogger("draftsmith.server").error("moderation failed: %s", type(error).__name__)
                code = -1
        if code == 1:
            raise ApiError(400, f"the {kind} was refused by this server's moderation", code="content_filter")
        if code != 0:
            raise ApiError(503, f"the {kind} could not be judged by this server's moderation", code="moderation_failed")

    async def _run(self, data: bytes) -> int:
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *self._words, stdin=asyncio.subprocess.PIPE, stdout=quiet, stderr=quiet
        )
        try:
            await process.communicate(data)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        return process.returncode if process.returncode is not None else -1
