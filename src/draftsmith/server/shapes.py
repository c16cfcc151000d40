"""The JSON objects of the API. One shape an endpoint; streamed chunks and whole answers are made of the same events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from draftsmith.engine import Handle, Piece
from draftsmith.server.generation import Event, Generation
from draftsmith.server.tools import FoundCall, ToolReader
from draftsmith.text import Tokenizer
from draftsmith.types import FinishReason, SpeculationStats, TokenLogprobs

__all__ = ["ChatShape", "Collected", "CompletionShape", "Shape", "Stamp", "tail", "usage"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What all chunks of an answer have in common."""

    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, prefix: str, kind: str) -> Json:
        """The first fields of an answer."""
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


@dataclass(slots=True)
class Collected:
    """A whole choice, gathered from its events."""

    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, event: Event) -> None:
        """Take in one event."""
        self.pieces += event.pieces
        self.logprobs += event.logprobs
        self.finish_reason = event.finish_reason

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)


class Shape(Protocol):
    """How an endpoint writes choices."""

    def head(self, *, streamed: bool) -> Json:
        """The first fields of an answer, or of every chunk."""
        ...

    def opening(self, index: int) -> Json | None:
        """The choice of a chunk that comes before all others; None for no such chunk."""
        ...

    def chunk(self, event: Event) -> list[Json]:
        """The choices of the chunks for an event, one each."""
        ...

    def choice(self, index: int, whole: Collected) -> Json:
        """A whole choice."""
        ...


class ChatShape:
    """/v1/chat/completions. ``tools``: names of functions whose calls are told from text; none leaves all as text."""

    def __init__(
        self, stamp: Stamp, tokenizer: Tokenizer, *, logprobs: bool, pieces: bool, tools: Sequence[str] = ()
    ) -> None:
        self._stamp, self._tokenizer, self._logprobs, self._pieces = stamp, tokenizer, logprobs, pieces
        self._tools = tools
        self._readers: dict[int, ToolReader] = {}
        self._num_calls: dict[int, int] = {}

    def head(self, *, streamed: bool) -> Json:
        """See ``Shape``."""
        return self._stamp.head("chatcmpl", "chat.completion.chunk" if streamed else "chat.completion")

    def opening(self, index: int) -> Json | None:
        """See ``Shape``."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, event: Event) -> list[Json]:
        """See ``Shape``. The end comes in a chunk of its own, as OpenAI's does."""
        chunks: list[Json] = []
        text, calls = self._divide(event)
        if text or (event.pieces and not self._tools) or calls or (self._logprobs and event.logprobs):
            delta: Json = {"content": text} if text or not calls else {}
            if calls:
                begin = self._num_calls.get(event.index, 0)
                self._num_calls[event.index] = begin + len(calls)
                delta["tool_calls"] = [{"index": begin + i, **_call(call)} for i, call in enumerate(calls)]
            chunks.append(
                {
                    "index": event.index,
                    "delta": delta,
                    "logprobs": self._listed(event.logprobs),
                    "finish_reason": None,
                    **(_pieces(event.pieces) if self._pieces else {}),
                }
            )
        if event.finish_reason is not None:
            called = event.index in self._readers and self._readers[event.index].found
            reason = "tool_calls" if called and event.finish_reason == "stop" else event.finish_reason
            chunks.append({"index": event.index, "delta": {}, "logprobs": None, "finish_reason": reason})
        return chunks

    def choice(self, index: int, whole: Collected) -> Json:
        """See ``Shape``."""
        message: Json = {"role": "assistant", "content": whole.text, "refusal": None}
        reason: str | None = whole.finish_reason
        if self._tools:
            reader = ToolReader(self._tools)
            text, calls = reader.push(whole.text)
            message["content"] = text + reader.flush()
            if calls:
                message |= {"content": message["content"] or None, "tool_calls": [_call(call) for call in calls]}
                reason = "tool_calls" if reason == "stop" else reason
        return {
            "index": index,
            "message": message,
            "logprobs": self._listed(whole.logprobs),
            "finish_reason": reason,
            **(_pieces(whole.pieces) if self._pieces else {}),
        }

    def _divide(self, event: Event) -> tuple[str, list[FoundCall]]:
        """The text of an event, and the calls that it completes."""
        if not self._tools:
            return event.text, []
        reader = self._readers.setdefault(event.index, ToolReader(self._tools))
        text, calls = reader.push(event.text)
        return text + (reader.flush() if event.finish_reason is not None else ""), calls

    def _listed(self, logprobs: Sequence[TokenLogprobs]) -> Json | None:
        if not self._logprobs:
            return None
        content = []
        for one in logprobs:
            top = [self._token(token_id, value) for token_id, value in one.top]
            content.append({**self._token(one.token_id, one.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Json:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


class CompletionShape:
    """/v1/completions. ``echoed``: what stands before the reply, by choice; empty without ``echo``. ``handles``: by
    choice, too, for the log-probabilities of what is echoed. ``by_id``: log-probabilities call a token ``token_id:5``,
    as vLLM does, rather than by its text, which is not unique."""

    def __init__(
        self,
        stamp: Stamp,
        tokenizer: Tokenizer,
        *,
        logprobs: bool,
        pieces: bool,
        by_id: bool = False,
        echoed: Sequence[str] = (),
        handles: Sequence[Handle] = (),
    ) -> None:
        self._stamp, self._tokenizer, self._logprobs, self._pieces = stamp, tokenizer, logprobs, pieces
        self._by_id, self._echoed, self._handles = by_id, echoed, handles
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def head(self, *, streamed: bool) -> Json:  # noqa: ARG002  # the same word for both
        """See ``Shape``."""
        return self._stamp.head("cmpl", "text_completion")

    def opening(self, index: int) -> Json | None:
        """See ``Shape``."""
        if not self._echoed or self._logprobs:  # log-probabilities of the prompt are not there yet
            return None
        return {"index": index, "text": self._echoed[index], "logprobs": None, "finish_reason": None}

    def chunk(self, event: Event) -> list[Json]:
        """See ``Shape``."""
        if not event.pieces and not (self._logprobs and event.logprobs) and event.finish_reason is None:
            return []
        text = event.text
        if self._echoed and self._logprobs and event.index not in self._begun:
            text = self._echoed[event.index] + text
        return [self._choice(event.index, text, event.logprobs, event.finish_reason, event.pieces)]

    def choice(self, index: int, whole: Collected) -> Json:
        """See ``Shape``."""
        text = (self._echoed[index] if self._echoed else "") + whole.text
        return self._choice(index, text, whole.logprobs, whole.finish_reason, whole.pieces)

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprobs],
        finish_reason: FinishReason | None,
        pieces: Sequence[Piece],
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": self._listed(index, logprobs) if self._logprobs else None,
            "finish_reason": finish_reason,
            **(_pieces(pieces) if self._pieces else {}),
        }

    def _listed(self, index: int, logprobs: Sequence[TokenLogprobs]) -> Json:
        listed: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if self._echoed and index not in self._begun:
            self._begun.add(index)
            handle = self._handles[index]
            self._list_first(listed, index, handle.request.prompt_ids[0])
            logprobs = [*handle.prompt_logprobs, *logprobs]
        for one in logprobs:
            text = self._tokenizer.text_of(one.token_id)
            offset = self._offsets.get(index, 0)
            self._offsets[index] = offset + len(text)
            listed["tokens"].append(self._called(one.token_id))
            listed["token_logprobs"].append(one.logprob)
            listed["top_logprobs"].append({self._called(token_id): value for token_id, value in one.top})
            listed["text_offset"].append(offset)
        return listed

    def _list_first(self, listed: Json, index: int, token_id: int) -> None:
        """Nothing stands before the first token, so there is nothing to be told of it."""
        text = self._tokenizer.text_of(token_id)
        self._offsets[index] = len(text)
        called = self._called(token_id)
        for name, value in (("tokens", called), ("token_logprobs", None), ("top_logprobs", None), ("text_offset", 0)):
            listed[name].append(value)

    def _called(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._by_id else self._tokenizer.text_of(token_id)


def _call(found: FoundCall) -> Json:
    function = {"name": found.call.name, "arguments": found.call.arguments}
    return {"id": found.id, "type": "function", "function": function}


def _pieces(pieces: Sequence[Piece]) -> Json:
    return {"pieces": [{"text": piece.text, "from_draft": piece.from_draft} for piece in pieces]}


def usage(generation: Generation) -> Json:
    """Token counts of the whole request."""
    prompt, reply = generation.num_prompt_tokens, generation.num_reply_tokens
    details = {"cached_tokens": generation.num_reused_tokens}
    counts = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    return {**counts, "prompt_tokens_details": details}


def tail(generation: Generation) -> Json:
    """What we add to an answer of one reply: statistics with vLLM's names, timings with llama.cpp's."""
    if len(generation.choices) != 1:
        return {"metrics": {"speculative_decoding": None}}
    handle = generation.choices[0].handle
    timing, stats = handle.timing, generation.speculation
    read = len(handle.request.prompt_ids) - handle.num_reused
    timings: Json = {
        "cache_n": handle.num_reused,
        **_pace("prompt", read, read, timing.prefill_s),
        **_pace("predicted", generation.num_reply_tokens, timing.num_decoded, timing.decode_s),
        "queued_ms": handle.queued_s * 1e3,
        "expected_speedup": generation.expected_speedup,
    }
    if stats is not None:
        timings |= {"draft_n": stats.num_draft_tokens, "draft_n_accepted": stats.num_accepted_tokens}
    return {"metrics": {"speculative_decoding": _speculation(stats)}, "timings": timings}


def _pace(what: str, count: int, timed: int, seconds: float) -> Json:
    """How many tokens, and how fast ``timed`` of them came in ``seconds``."""
    return {
        f"{what}_n": count,
        f"{what}_ms": seconds * 1e3,
        f"{what}_per_token_ms": seconds * 1e3 / timed if timed else 0.0,
        f"{what}_per_second": timed / seconds if seconds > 0 else 0.0,
    }


def _speculation(stats: SpeculationStats | None) -> Json | None:
    if stats is None:
        return None
    per_pos = stats.num_accepted_tokens_per_pos
    reached = (stats.num_drafts, *per_pos, 0)
    return {
        "drafter": stats.drafter,
        "mean_acceptance_length": stats.mean_acceptance_length,
        "draft_acceptance_rate": stats.acceptance_rate,
        "acceptance_histogram": [longer - longest for longer, longest in pairwise(reached)],
        "num_spec_steps": stats.num_drafts,
        "num_accepted_draft_tokens": stats.num_accepted_tokens,
        "num_draft_tokens": stats.num_draft_tokens,
        "num_spec_tokens": len(per_pos),
    }
