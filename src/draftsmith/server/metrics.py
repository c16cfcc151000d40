"""Counters for Prometheus, with the names and meaning of vLLM's, so that its dashboards and benchmarks read them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from draftsmith.engine import EngineStats
from draftsmith.types import SpeculationStats, Timing

__all__ = ["Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_HELP = {
    "num_requests_running": "Replies that are being written.",
    "num_requests_waiting": "Requests in the queue.",
    "kv_cache_usage_perc": "Share of the memory for keys and values that is in use, 1 for all of it.",
    "kv_cache_bytes": "Bytes of keys and values, those kept for later prompts included.",
    "num_preemptions_total": "Requests that gave up their caches for want of memory.",
    "prompt_tokens_total": "Tokens of prompts.",
    "prefix_cache_queries_total": "Tokens of prompts that were looked for in caches.",
    "prefix_cache_hits_total": "Tokens of prompts that were found in caches.",
    "generation_tokens_total": "Tokens written, counted when their reply ends.",
    "admission_rejections_total": "Requests that were refused because the queue was full.",
    "spec_decode_num_drafts_total": "Rounds that had a draft.",
    "spec_decode_num_draft_tokens_total": "Draft tokens.",
    "spec_decode_num_accepted_tokens_total": "Draft tokens that were accepted.",
    "spec_decode_num_accepted_tokens_per_pos_total": "Rounds whose draft token at the position was accepted.",
    "request_success_total": "Replies that ended, by reason.",
    "time_to_first_token_seconds": "From a request's arrival to its first token.",
    "e2e_request_latency_seconds": "From a request's arrival to its last token.",
    "request_queue_time_seconds": "In the queue.",
    "request_prefill_time_seconds": "From leaving the queue to the first token.",
    "request_decode_time_seconds": "From the first token to the last.",
    "request_inference_time_seconds": "From leaving the queue to the last token.",
    "request_time_per_output_token_seconds": "Decoding time over tokens after the first, a reply each.",
    "request_prompt_tokens": "Tokens of a prompt.",
    "request_generation_tokens": "Tokens of a reply.",
}


class Histogram:
    """Counts of values by upper bound, cumulative when written."""

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Suffix, labels and value of every line."""
        total = 0
        for bound, count in zip((*(str(float(bound)) for bound in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield "_bucket", {"le": bound}, total
        yield "_sum", {}, self._sum
        yield "_count", {}, total


class Metrics:
    """What the server has done since it began. For the event loop's thread alone."""

    def __init__(self, model: str) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        self._generation_tokens = 0
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._rejected = 0
        self._num_drafts = self._num_draft_tokens = self._num_accepted = 0
        self._accepted_per_pos: list[int] = []
        self._histograms = {name: Histogram() for name in _HELP if name.endswith("_seconds")}
        self._histograms |= {
            name: Histogram(_TOKENS) for name in ("request_prompt_tokens", "request_generation_tokens")
        }

    def reject(self) -> None:
        """A request was turned away because the queue was full."""
        self._rejected += 1

    def finish(self, reason: str, num_tokens: int, speculation: SpeculationStats | None) -> None:
        """A reply has ended; ``reason`` is stop, length, abort (the client has left) or error."""
        self._finished[reason] += 1
        self._generation_tokens += num_tokens
        if speculation is not None:
            self._num_drafts += speculation.num_drafts
            self._num_draft_tokens += speculation.num_draft_tokens
            self._num_accepted += speculation.num_accepted_tokens
            per_pos = speculation.num_accepted_tokens_per_pos
            self._accepted_per_pos += [0] * (len(per_pos) - len(self._accepted_per_pos))
            for position, count in enumerate(per_pos):
                self._accepted_per_pos[position] += count

    def observe(self, queued_s: float, timing: Timing, *, num_prompt: int, num_reply: int) -> None:
        """How long a reply took that came to its end, and how long prompt and reply were."""
        values = {
            "time_to_first_token_seconds": queued_s + timing.prefill_s,
            "e2e_request_latency_seconds": queued_s + timing.prefill_s + timing.decode_s,
            "request_queue_time_seconds": queued_s,
            "request_prefill_time_seconds": timing.prefill_s,
            "request_decode_time_seconds": timing.decode_s,
            "request_inference_time_seconds": timing.prefill_s + timing.decode_s,
            "request_prompt_tokens": num_prompt,
            "request_generation_tokens": num_reply,
        }
        if timing.num_decoded:
            values["request_time_per_output_token_seconds"] = timing.decode_s / timing.num_decoded
        for name, value in values.items():
            self._histograms[name].observe(value)

    def text(self, engine: EngineStats) -> str:
        """The page that Prometheus reads."""
        usage = engine.kv_bytes / engine.kv_budget if engine.kv_budget else 0.0
        lines: list[str] = []
        for name, value in (
            ("num_requests_running", engine.running),
            ("num_requests_waiting", engine.waiting),
            ("kv_cache_usage_perc", usage),
            ("kv_cache_bytes", engine.kv_bytes),
        ):
            lines += self._family(name, "gauge", [("", {}, value)])
        for name, count in (
            ("num_preemptions", engine.num_preemptions),
            ("prompt_tokens", engine.num_prompt_tokens),
            ("prefix_cache_queries", engine.num_prompt_tokens),
            ("prefix_cache_hits", engine.num_reused_tokens),
            ("generation_tokens", self._generation_tokens),
            ("admission_rejections", self._rejected),
            ("spec_decode_num_drafts", self._num_drafts),
            ("spec_decode_num_draft_tokens", self._num_draft_tokens),
            ("spec_decode_num_accepted_tokens", self._num_accepted),
        ):
            lines += self._family(f"{name}_total", "counter", [("", {}, count)])
        per_pos = [("", {"position": str(i)}, count) for i, count in enumerate(self._accepted_per_pos)]
        lines += self._family("spec_decode_num_accepted_tokens_per_pos_total", "counter", per_pos)
        reasons = [("", {"finished_reason": reason}, count) for reason, count in self._finished.items()]
        lines += self._family("request_success_total", "counter", reasons)
        for name, histogram in self._histograms.items():
            lines += self._family(name, "histogram", list(histogram.samples()))
        return "\n".join(lines) + "\n"

    def _family(self, name: str, kind: str, samples: Sequence[tuple[str, Mapping[str, str], float]]) -> list[str]:
        lines = [f"# HELP vllm:{name} {_HELP[name]}", f"# TYPE vllm:{name} {kind}"]
        for suffix, labels, value in samples:
            listed = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**self._labels, **labels}.items())
            lines.append(f"vllm:{name}{suffix}{{{listed}}} {value:.17g}")
        return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
