"""An engine in its own thread: rounds reach async code, cancellation and shutdown free what was held."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import Engine, EngineLimits, Handle, RequestOptions
from draftsmith.engine.thread import AsyncReply, EngineThread
from draftsmith.errors import PromptTooLong, QueueFull, UsageError
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import ModelDrafter, PromptLookupDrafter, Round, generate
from draftsmith.types import Request, SamplingParams
from tests.support.fakes import EOS, VOCAB_SIZE, FakeModel
from tests.support.shared_fakes import SharedFakeModel

PATIENCE = 60.0  # seconds; only a failure takes so long


class GatedModel(SharedFakeModel):
    """Every forward waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        assert self.gate.acquire(timeout=PATIENCE)
        return super().forward(runs)


def request(text: str = "abc", length: int = 30) -> Request:
    sampling = SamplingParams(seed=3, max_new_tokens=length, ignore_eos=True)
    return Request(prompt_ids=tuple(text.encode()), sampling=sampling)


def expected(wanted: Request) -> list[int]:
    model = FakeModel()
    return [token for r in generate(model, model.new_cache(), wanted, eos_ids=(EOS,)) for token in r.token_ids]


def tokens(rounds: Sequence[Round]) -> list[int]:
    return [token for written in rounds for token in written.token_ids]


def started(model: SharedFakeModel | None = None, **limits: Any) -> EngineThread:
    engine = Engine(
        model or SharedFakeModel(),
        eos_ids=(EOS,),
        drafter=PromptLookupDrafter(),
        num_draft_tokens=3,
        limits=EngineLimits(**limits),
    )
    return EngineThread(engine)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_many_async_readers_get_their_own_tokens() -> None:
    wanted = [request("abc " * n, 10 + n) for n in range(1, 9)]

    async def read(thread: EngineThread, one: Request) -> list[int]:
        return tokens([written async for written in thread.open(one).rounds()])

    async def all_of_them(thread: EngineThread) -> list[list[int]]:
        return await asyncio.gather(*(read(thread, one) for one in wanted))

    with started(max_running=3) as thread:
        assert asyncio.run(all_of_them(thread)) == [expected(one) for one in wanted]
        assert thread.stats.running == 0


def test_what_a_step_brings_is_told_at_once() -> None:
    """Not text by text: a loop that wakes up for the first would take the interpreter from the engine."""
    told: list[object] = []

    async def read(reply: AsyncReply) -> int:
        return len(tokens([written async for written in reply.rounds()]))

    async def all_of_them(thread: EngineThread) -> list[int]:
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counted(callback: Callable[..., object], *arguments: Any, **context: Any) -> asyncio.Handle:
            told.append(callback)
            return call(callback, *arguments, **context)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", counted)
            return await asyncio.gather(*(read(thread.open(request(length=30))) for _ in range(6)))

    with started(max_running=6) as thread:
        assert asyncio.run(all_of_them(thread)) == [30] * 6
        until(lambda: thread.stats.running == 0)
        assert 0 < len(told) <= thread.stats.num_steps


def test_news_is_told_when_the_next_models_are_about_to_compute() -> None:
    """A loop that is woken earlier would take the interpreter from the drafts of the next step."""
    seen: list[str] = []

    class Heard(SharedFakeModel):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
            seen.append(self.name)
            return super().forward(runs)

    target, draft = Heard("target"), Heard("draft")
    drafter = ModelDrafter(draft, target_vocab_size=target.vocab_size)
    engine = Engine(target, drafter=drafter, draft_model=draft, num_draft_tokens=2)
    handle = engine.submit(request(length=9))
    while not handle.finished:
        seen.append("step")
        engine.step(lambda: seen.append("told"))
    steps = " ".join(seen).split("step ")[1:]
    assert steps[0].split() == ["told", "target"]
    assert len(steps) > 2
    assert {each.split().index("told") for each in steps} == {0}
    assert any(each.startswith("told draft") for each in steps)
    for each in steps:
        before = each.split()[: each.split().index("target")]
        assert before[-1] == "told", "the target computes, and nobody was told"


def test_waiting_in_a_plain_thread() -> None:
    with started() as thread:
        handle = thread.submit(request())
        assert thread.wait(handle, PATIENCE)
        assert tokens(handle.take()) == expected(handle.request)
        assert handle.timing.num_decoded == 29
        assert handle.timing.decode_s > 0


def test_leaving_the_iteration_cancels_and_frees() -> None:
    model = SharedFakeModel()

    async def read_two(thread: EngineThread) -> Handle:
        reply = thread.open(request(length=400))
        rounds = reply.rounds()
        await anext(rounds)
        await anext(rounds)
        await rounds.aclose()
        return reply.handle

    with started(model, max_kept_texts=0) as thread:
        handle = asyncio.run(read_two(thread))
        assert thread.wait(handle, PATIENCE)
        assert handle.cancelled
        until(lambda: model.cache_bytes_in_use == 0)


def test_a_cancelled_reader_task_cancels_the_request() -> None:
    async def give_up(thread: EngineThread) -> Handle:
        reply = thread.open(request(length=400))

        async def read() -> None:
            async for _ in reply.rounds():
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return reply.handle

    model = GatedModel()
    with started(model) as thread:
        handle = asyncio.run(give_up(thread))
        model.gate.release(1000)
        assert thread.wait(handle, PATIENCE)
        assert handle.cancelled


def test_refusals_reach_the_caller_at_once() -> None:
    """Also while the model is busy: whoever asks is not kept waiting for a step."""
    model = GatedModel()
    with started(model, max_running=1, max_waiting=2) as thread:
        first = thread.submit(request())
        until(lambda: thread._engine.num_waiting == 0 and not thread._inbox)
        others = [thread.submit(request()) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests are waiting already"):
            thread.submit(request())
        with pytest.raises(PromptTooLong):
            thread.submit(request("a" * 600))
        with pytest.raises(UsageError, match="token id"):
            thread.submit(Request(prompt_ids=(VOCAB_SIZE,), sampling=SamplingParams()))
        model.gate.release(1000)
        for handle in (first, *others):
            assert thread.wait(handle, PATIENCE)
            assert tokens(handle.take()) == expected(handle.request)


def test_errors_reach_the_reader() -> None:
    async def read(thread: EngineThread) -> None:
        def broken(written: Round) -> Round:
            raise ValueError(f"no {written.token_ids}")

        async for _ in thread.open(request(), RequestOptions(round_filter=broken)).rounds():
            pass

    with started() as thread:
        with pytest.raises(ValueError, match="no "):
            asyncio.run(read(thread))
        handle = thread.submit(request())
        assert thread.wait(handle, PATIENCE)
        assert handle.error is None


@pytest.mark.parametrize("drain_s", [0.0, PATIENCE])
def test_closing_drains_or_ends_what_is_under_way(drain_s: float) -> None:
    model = GatedModel()
    thread = started(model, max_running=1)
    handles = [thread.submit(request(length=30)) for _ in range(2)]
    closing = threading.Thread(target=thread.close, args=(drain_s,))
    closing.start()
    until(lambda: not thread._accepting)
    with pytest.raises(QueueFull, match="shutting down"):
        thread.submit(request())
    until(lambda: thread._running is (drain_s > 0))
    model.gate.release(1000)
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert all(handle.finished for handle in handles)
    complete = [len(tokens(handle.take())) == 30 for handle in handles]
    assert all(complete) if drain_s else not any(complete)


def test_a_dead_event_loop_does_not_hurt_the_engine() -> None:
    async def open_only(thread: EngineThread) -> Handle:
        return thread.open(request()).handle

    model = GatedModel()
    with started(model) as thread:
        handle = asyncio.run(open_only(thread))
        model.gate.release(1000)
        assert thread.wait(handle, PATIENCE)
        assert tokens(handle.take()) == expected(handle.request)
