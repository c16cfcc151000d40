"""Counters for Prometheus, with the names and meaning of vLLM's, so that its dashboards and benchmarks read them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from draftsmith.engine import EngineStats
from draftsmith.types import SpeculationStats

__all__ = ["Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of seconds by upper bound, cumulative when written."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Suffix, labels and value of every line."""
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
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
        self._first_token, self._whole, self._queued, self._per_token = (Histogram() for _ in range(4))

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

    def time(self, *, queued_s: float, prefill_s: float, decode_s: float, num_decoded: int) -> None:
        """How long a reply took that came to its end."""
        self._queued.observe(queued_s)
        self._first_token.observe(queued_s + prefill_s)
        self._whole.observe(queued_s + prefill_s + decode_s)
        if num_decoded:
            self._per_token.observe(decode_s / num_decoded)

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
        for name, histogram in (
            ("time_to_first_token_seconds", self._first_token),
            ("e2e_request_latency_seconds", self._whole),
            ("request_queue_time_seconds", self._queued),
            ("request_time_per_output_token_seconds", self._per_token),
        ):
            lines += self._family(name, "histogram", list(histogram.samples()))
        return "\n".join(lines) + "\n"

    def _family(self, name: str, kind: str, samples: Sequence[tuple[str, Mapping[str, str], float]]) -> list[str]:
        lines = [f"# TYPE vllm:{name} {kind}"]
        for suffix, labels, value in samples:
            listed = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**self._labels, **labels}.items())
            lines.append(f"vllm:{name}{suffix}{{{listed}}} {value:.17g}")
        return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
