"""The model as the routes see it: prompts to ids without keeping the event loop, requests to the engine, names."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from draftsmith.engine import RequestOptions
from draftsmith.engine.grammar import GrammarCompiler
from draftsmith.engine.thread import EngineThread
from draftsmith.errors import PromptTooLong, QueueFull
from draftsmith.server.fields import ChatMessage
from draftsmith.server.generation import Choice, Generation, ReplyReader
from draftsmith.server.metrics import Metrics
from draftsmith.server.problems import ApiError, as_api_error
from draftsmith.server.schema import Generate
from draftsmith.speculate import CostModel
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.types import MAX_SEED, Constraint, Request

__all__ = ["ServedModel", "Service"]

T = TypeVar("T")
_ENCODERS = 2  # more would take the processors from the model


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served. ``context``: tokens that prompt and reply may have together. ``costs``: what
    drafts and checks cost, if measured.
    """

    name: str
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    context: int
    drafter: str | None = None
    costs: CostModel | None = None
    created: int = field(default_factory=lambda: int(time.time()))


class Service:
    """Everything between HTTP and the engine. For the event loop's thread; ``close`` ends the helpers."""

    def __init__(self, model: ServedModel, engine: EngineThread, metrics: Metrics, *, ping_s: float = 15.0) -> None:
        self.model = model
        self.engine = engine
        self.metrics = metrics
        self._ping_s = ping_s
        self._grammars = GrammarCompiler(model.tokenizer)
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="draftsmith-encode")

    def close(self) -> None:
        """No more prompts are encoded."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str | None) -> None:
        """Raises ApiError when another model is asked for than the one that is there."""
        if name is not None and name != self.model.name:
            message = f"there is no model of this name; the one that is served is {self.model.name}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def check_room(self) -> None:
        """Raises ApiError when the queue is full, before anything is spent on a request that cannot be taken."""
        try:
            self.engine.check_room()
        except QueueFull as error:
            self.metrics.reject()
            raise as_api_error(error) from error

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Ids of messages in the model's prompt format. Raises ApiError."""
        turns, shown = [one.message for one in messages], self.model.prompt_format

        def work() -> list[int]:
            if tools and not shown.knows_tools:
                message = "this model's prompt format knows no tools, so they are not supported; leave them out"
                raise ApiError(400, message, param="tools", code="unsupported_parameter")
            return list(shown.encode(turns, add_generation_prompt=add_generation_prompt, tools=tools).token_ids)

        return await self.aside(work, "messages")

    async def compile(self, body: Generate) -> Constraint | None:
        """The form of the reply, made ready. Raises ApiError."""
        for param, form in body.forms.items():
            return await self.aside(partial(self._grammars.compile, form), param)
        return None

    async def encode_text(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Ids of a text as it stands. Raises ApiError."""
        return await self.aside(lambda: self.model.tokenizer.encode(text, add_bos=add_bos), "prompt")

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids. Raises ApiError."""
        self._check_ids(token_ids, "tokens")
        return await self.aside(lambda: self.model.tokenizer.decode(token_ids), "tokens")

    def _check_ids(self, token_ids: Iterable[int], param: str) -> None:
        wrong = next((token_id for token_id in token_ids if token_id >= self.model.tokenizer.vocab_size), None)
        if wrong is not None:
            message = f"the id {wrong} is none of the model's, which are below {self.model.tokenizer.vocab_size}"
            raise ApiError(400, message, param=param, code="invalid_value")

    def submit(
        self,
        body: Generate,
        prompts: Sequence[Sequence[int]],
        *,
        param: str,
        extra_stops: tuple[str, ...] = (),
        constraint: Constraint | None = None,
        prompt_logprobs: int | None = None,
    ) -> Generation:
        """Queue ``body.n`` replies to every prompt: all of them, or none. Close what is returned.

        Choice i of a prompt has the request's seed plus i, so that the first one is what it would be alone.
        Raises ApiError.
        """
        self._check_ids(map(int, body.logit_bias), "logit_bias")
        generation = Generation(self.metrics, self._ping_s, self.model.costs)
        base = secrets.randbits(63) if body.seed is None else body.seed
        try:
            for index, prompt in enumerate(prompts):
                room = self.model.context - len(prompt)
                if room < 1:
                    raise PromptTooLong(
                        f"the prompt has {len(prompt)} tokens, but the context holds {self.model.context} with the "
                        "reply; shorten it"
                    )
                for i in range(body.n):
                    params = body.sampling((base + i) & MAX_SEED, room, extra_stops)
                    reader = ReplyReader(self.model.tokenizer, params.stop)
                    options = RequestOptions(
                        draft=body.draft,
                        num_draft_tokens=body.num_draft_tokens,
                        round_filter=reader,
                        prompt_logprobs=prompt_logprobs,
                    )
                    request = Request(prompt_ids=tuple(prompt), sampling=params, constraint=constraint)
                    handle = self.engine.submit(request, options, self.engine.waker(generation.news))
                    generation.choices.append(Choice(handle, reader, index))
        except Exception as error:
            if isinstance(error, QueueFull):
                self.metrics.reject()
            generation.close()
            raise as_api_error(error, param) from error
        return generation

    async def aside(self, work: Callable[[], T], param: str) -> T:
        """Do ``work`` in another thread, so that health checks and streams go on meanwhile."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoders, work)
        except Exception as error:
            raise as_api_error(error, param) from error
