"""Several replies written together, from start to end, by the batched engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from draftsmith.engine.batch import Engine
from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.engine.reply import Reply
from draftsmith.speculate import Round
from draftsmith.types import Completion, Request

__all__ = ["write_together"]


def write_together(engine: Engine, texts: Sequence[tuple[Request, Reply]], load_s: float) -> list[Completion]:
    """Submit all requests, step until each is done, and gather every one's rounds in its Reply. No caches are left.

    Raises what the engine refuses a request with, or what goes wrong with one; the others are then abandoned.
    """
    try:
        handles = [_submit(engine, request, reply) for request, reply in texts]
        while not engine.idle:
            engine.step()
            if error := next((handle.error for handle in handles if handle.error is not None), None):
                raise error
    finally:
        engine.abandon()
        engine.forget_texts()
    for _, reply in texts:
        reply.finish()
    timings = [dataclasses.replace(handle.timing, load_s=load_s) for handle in handles]
    return [reply.completion(timing) for (_, reply), timing in zip(texts, timings, strict=True)]


def _submit(engine: Engine, request: Request, reply: Reply) -> Handle:
    def gather(written: Round) -> Round:
        return reply.add(written)[0]

    return engine.submit(request, RequestOptions(round_filter=gather))
