"""Our models for the Language Model Evaluation Harness (lm-eval): any of its tasks, answered by the batched engine.

``EvalModel`` is what it asks of a model; ``lm_eval_model`` makes it one of its own kind (``lm_eval.api.model.LM``).
Texts become ids as there: the continuation is what the whole has beyond the context alone, spaces at the context's end
go to the continuation, and an empty context is the beginning-of-text token, or else the end-of-text token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from draftsmith.engine import LLM
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.measure.scoring import Ids, Scorer, rolling_windows
from draftsmith.types import Message, SamplingParams

__all__ = ["Asked", "EvalModel", "check_lm_eval", "lm_eval_model", "run_tasks"]

_NEW_TOKENS = 256
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"}
_IGNORED = {"num_beams", "skip_special_tokens", "spaces_between_special_tokens", "max_length"}


class Asked(Protocol):
    """One of lm-eval's requests (``Instance``)."""

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,), or (context, generation settings)."""
        ...


class EvalModel:
    """What lm-eval asks of a model, without lm-eval itself."""

    def __init__(self, llm: LLM, report: Report = tell_nobody) -> None:
        self._llm = llm
        self._report = report
        self._scorer = Scorer(llm)
        tokenizer = llm.tokenizer
        ends = tokenizer.eos_ids
        start = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(ends), None)
        if start is None:
            raise UsageError(
                f"{llm.name} has neither a beginning-of-text nor an end-of-text token; texts need a first one"
            )
        self._start = start

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches of requests."""
        return str(self._llm.tokenizer.fingerprint())

    def loglikelihood(self, requests: Sequence[Asked], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p of the continuation after the context, whether greedy decoding would write it), by request."""
        del disable_tqdm
        found = self._scorer.score([self.pair(*request.args) for request in requests], self._report)
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Asked], disable_tqdm: bool = False) -> list[float]:
        """ln p of each whole text, in windows as long as the context."""
        del disable_tqdm
        texts = [self._llm.tokenizer.encode(str(request.args[0]), add_bos=False) for request in requests]
        windows = [rolling_windows(ids, self._start, self._scorer.max_tokens) for ids in texts]
        scored = iter(self._scorer.score([pair for part in windows for pair in part], self._report))
        return [sum((next(scored).logprob for _ in part), 0.0) for part in windows]

    def generate_until(self, requests: Sequence[Asked], disable_tqdm: bool = False) -> list[str]:
        """The reply to each context, up to the first of its stop strings."""
        del disable_tqdm
        asked = [sampling_of(request.args[1]) for request in requests]
        room = self._llm.max_context
        prompts = [
            self._llm.tokenizer.encode(str(request.args[0]), parse_special=True)[
                -max(1, room - params.max_new_tokens) :
            ]
            for request, params in zip(requests, asked, strict=True)
        ]
        self._report(0, len(prompts), "writing")
        return [reply.text for reply in self._llm.generate(prompts, asked)] if prompts else []

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages in the model's own prompt format, as text."""
        messages = [Message(_role(one["role"]), one["content"]) for one in chat_history]
        ids = self._llm.prompt_format.encode(messages, add_generation_prompt=add_generation_prompt).token_ids
        bos = self._llm.tokenizer.bos_id
        kept = ids[1:] if self._llm.tokenizer.add_bos and ids[:1] == (bos,) else ids
        return self._llm.tokenizer.decode(kept)

    def pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """The ids of a context and of what is to be scored after it."""
        encode = self._llm.tokenizer.encode
        if not context:
            return (self._start,), tuple(encode(continuation, add_bos=False))
        spaces = len(context) - len(context.rstrip())
        text, context = context + continuation, context[: len(context) - spaces]
        before = tuple(encode(context, parse_special=True)) or (self._start,)
        return before, tuple(encode(text, parse_special=True))[len(before) if context else 0 :]


def sampling_of(settings: Mapping[str, Any]) -> SamplingParams:
    """lm-eval's generation settings as ours: greedy unless ``do_sample`` or a temperature says otherwise.

    Raises UsageError for settings that would be without effect.
    """
    unknown = sorted(set(settings) - _KNOWN - _IGNORED)
    if unknown or settings.get("num_beams", 1) != 1:
        raise UsageError(
            f"the task asks for {', '.join(unknown) or 'num_beams'}, which draftsmith does not do; leave it out"
        )
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    sampled = bool(settings.get("do_sample", given.get("temperature", 0) > 0)) and given.get("temperature", 1) > 0
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    return SamplingParams(
        **{**neutral, **given},
        greedy=not sampled,
        max_new_tokens=int(settings.get("max_gen_toks", _NEW_TOKENS)),
        stop=tuple(text for text in stops if text),
    )


def _role(name: str) -> Any:
    if name not in ("system", "user", "assistant"):
        raise UsageError(f"a task has a message of the role {name!r}; it must be system, user or assistant")
    return name


def check_lm_eval() -> None:
    """Raises UsageError when lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError("tasks of lm-eval need that package; install it with: pip install 'draftsmith[lm-eval]'")


def lm_eval_model(llm: LLM, report: Report = tell_nobody) -> Any:
    """An ``lm_eval.api.model.LM`` for ``lm_eval.simple_evaluate(model=...)``. Raises UsageError without lm-eval."""
    check_lm_eval()
    from lm_eval.api.model import LM

    def begin(self: Any) -> None:
        LM.__init__(self)
        EvalModel.__init__(self, llm, report)

    return type("DraftsmithLM", (EvalModel, LM), {"__init__": begin})()


def run_tasks(
    llm: LLM,
    names: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    report: Report = tell_nobody,
) -> dict[str, Any]:
    """lm-eval's figures by task: its metrics, their standard errors where it has them, and how many were asked.

    ``folder``: further tasks, as YAML files. ``limit``: at most so many questions of each task. ``chat``: questions are
    messages in the model's prompt format. Raises UsageError for a task that lm-eval does not know, DraftsmithError
    when a task cannot be run (its data cannot be fetched, for example).
    """
    model = lm_eval_model(llm, report)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if folder is None else str(folder))
    missing = [name for name in names if name not in manager.all_tasks]
    if missing:
        raise UsageError(f"lm-eval has no task {missing[0]!r}; its list is told by: lm-eval ls tasks")
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(names),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=chat,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except (DraftsmithError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DraftsmithError(f"lm-eval could not run {', '.join(names)}: {reason}") from error
    return {name: _figures(name, found) for name in found["results"]}


def _figures(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    metrics, errors = {}, {}
    for key, value in found["results"][name].items():
        if "," not in key or not isinstance(value, int | float):
            continue
        metric, _, kind = key.partition(",")
        label = metric if kind == "none" else f"{metric} ({kind})"
        if metric.endswith("_stderr"):
            errors[label.replace("_stderr", "", 1)] = float(value)
        else:
            metrics[label] = float(value)
    samples = found.get("n-samples", {}).get(name, {})
    return {
        "version": found.get("versions", {}).get(name),
        "num_fewshot": found.get("n-shot", {}).get(name),
        "questions": samples.get("effective"),
        "metrics": metrics,
        "standard_errors": errors,
    }
