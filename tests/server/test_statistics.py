"""What an answer and the metrics tell of the work: vLLM's names, llama.cpp's names, and sums that agree."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import Handle
from draftsmith.server.generation import Choice, Generation, ReplyReader
from draftsmith.server.metrics import Metrics
from draftsmith.speculate import CostModel, Round
from draftsmith.types import Request, SamplingParams
from tests.support.fakes import byte_tokenizer
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

LLAMA_CPP = {
    "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n", "predicted_ms",
    "predicted_per_token_ms", "predicted_per_second", "draft_n", "draft_n_accepted",
}  # fmt: skip
VLLM = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total",
    "prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
    "request_success_total", "time_to_first_token_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_time_per_output_token_seconds", "request_prompt_tokens",
    "request_generation_tokens", "spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total", "spec_decode_num_accepted_tokens_per_pos_total",
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SharedFakeModel(max_context=1024)) as found:
        yield found


def test_timings_have_the_names_of_llama_cpp_and_tell_what_was_read(server: Running) -> None:
    prompt = "abcdefgh" * 20
    first, second = (
        server.call("POST", "/v1/completions", {"prompt": prompt, "max_tokens": 20, "temperature": 0}).json
        for _ in range(2)
    )
    for answer in (first, second):
        timings, usage = answer["timings"], answer["usage"]
        assert timings.keys() == LLAMA_CPP | {"queued_ms", "expected_speedup"}
        assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"] == 160
        assert timings["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert timings["predicted_n"] == usage["completion_tokens"] == 20
        assert timings["predicted_per_token_ms"] * timings["predicted_per_second"] == pytest.approx(1000)
    assert first["timings"]["cache_n"] == 0
    assert second["timings"]["cache_n"] >= 128  # whole blocks of what the first has read
    assert first["choices"] == second["choices"]


def test_the_usage_so_far_comes_with_every_chunk(server: Running) -> None:
    body = {"prompt": "abc", "max_tokens": 9, "stream": True}
    told = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    lines = server.call("POST", "/v1/completions", {**body, **told}).body.decode().split("\n\n")
    chunks: list[Any] = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 9
    assert counts[0] < 9


def test_every_metric_is_described_and_of_one_kind(server: Running) -> None:
    server.call("POST", "/v1/completions", {"prompt": "abc", "max_tokens": 30})
    page = server.call("GET", "/metrics").body.decode()
    assert page.endswith("\n")
    kinds = dict(re.findall(r"^# TYPE vllm:(\S+) (gauge|counter|histogram)$", page, re.MULTILINE))
    helped = re.findall(r"^# HELP vllm:(\S+) \S.*\.$", page, re.MULTILINE)
    assert list(kinds) == helped
    assert kinds.keys() >= VLLM
    samples = [line for line in page.splitlines() if not line.startswith("#")]
    for line in samples:
        found = re.fullmatch(r'vllm:(\w+)\{(?:\w+="[^"]*",?)+\} [-+0-9.e]+', line)
        assert found, line
        name = found[1]
        family = name if name in kinds else re.sub("_(bucket|sum|count)$", "", name)
        assert (kinds[family] == "histogram") == (name != family), line
        assert (kinds[family] == "counter") == name.endswith("_total"), line
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        buckets = [float(line.split()[-1]) for line in samples if line.startswith(f"vllm:{name}_bucket")]
        [count] = [float(line.split()[-1]) for line in samples if line.startswith(f"vllm:{name}_count")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count > 0


def test_the_speed_up_to_be_expected_follows_from_rounds_and_costs() -> None:
    """One plain step and three of a draft token each, which cost 1.5 and wrote two tokens: 7 tokens for 5.5 steps."""
    generation = asyncio.run(_replayed())
    assert generation.expected_speedup == pytest.approx(7 / 5.5)
    assert generation.num_reply_tokens == 8


def test_the_speed_up_to_be_expected_of_a_long_text_counts_what_its_checks_cost() -> None:
    """A token more of a check costs 1.25 above a plain step after 1,088 tokens; by 1 % more at the end of the text."""
    generation = asyncio.run(_replayed(64 + 1024, context_row=1.0))
    assert generation.expected_speedup == pytest.approx(7 / (1 + 3 * (0.25 + 2.25)), rel=0.01)


async def _replayed(num_prompt: int = 1, context_row: float = 0.0) -> Generation:
    request = Request(prompt_ids=(97,) * num_prompt, sampling=SamplingParams(seed=0))
    handle = Handle(request, "lookup", None)
    reader = ReplyReader(byte_tokenizer(), ())
    generation = Generation(Metrics("tiny"), 1.0, CostModel(0.25, (1.0, 1.25), context_row=context_row))
    generation.choices.append(Choice(handle, reader))
    rounds = [Round((97,), 0, 0), Round((98,), 0, 0), *[Round((98, 99), 1, 1)] * 2, Round((98, 99), 1, 1, "length")]
    for written in rounds:
        handle.put(reader(written))
    generation.news.set()
    async for _ in generation.events():
        pass
    return generation
