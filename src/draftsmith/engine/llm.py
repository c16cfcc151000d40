"""``LLM``: a target and perhaps a drafter, loaded and ready to write."""

from __future__ import annotations

import dataclasses
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar, cast

from draftsmith.engine.assemble import TextAssembler
from draftsmith.engine.batch import Engine
from draftsmith.engine.calibrate import MeasuredLength, StepCosts
from draftsmith.engine.calibration import Calibration
from draftsmith.engine.grammar import GrammarCompiler
from draftsmith.engine.limits import EngineLimits
from draftsmith.engine.loading import DraftChoice, LoadedDrafter, LoadedModel, load_drafter, load_model
from draftsmith.engine.options import DEFAULT_TARGET, Backend, EngineOptions, Progress, no_progress
from draftsmith.engine.reply import Reply
from draftsmith.engine.sequence import SequenceStore
from draftsmith.engine.stream import TextStream
from draftsmith.engine.together import write_together
from draftsmith.errors import UsageError
from draftsmith.model.protocol import Model
from draftsmith.model.storage import CacheDtype, Dtype, Quantize
from draftsmith.speculate import Drafter, FixedLength, LengthPolicy, RoundTimes, TracedDrafter, generate
from draftsmith.text import PromptFormat, Tokenizer, choose_format
from draftsmith.types import Completion, Message, Request, SamplingParams, VerificationRule

__all__ = ["LLM", "Prompt"]

MIN_PLAIN_ROUNDS = 5  # fewer say too little of what a plain step takes

Wrapped = TypeVar("Wrapped", bound=Drafter)

PromptProgress = Callable[[int, int], object]

Prompt = str | Sequence[int]
"""Text, or token ids that are used as they are."""


class LLM:
    """Writes text with a target model, helped by a drafter that can change nothing but the speed.

    The caches of the last reply are kept: a prompt that begins like it (the next turn of a chat, the same system
    prompt) is read only from where it differs. Not safe for use by several threads at once.
    """

    def __init__(
        self,
        target: str | Path | LoadedModel = DEFAULT_TARGET,
        draft: DraftChoice = "auto",
        *,
        prompt_format: str | None = None,
        backend: Backend = "auto",
        device: str = "auto",
        draft_backend: Backend | None = None,
        draft_device: str | None = None,
        exact: bool = False,
        dtype: Dtype = "auto",
        quantize: Quantize | None = None,
        kv_dtype: CacheDtype = "auto",
        num_draft_tokens: int | Literal["auto"] = "auto",
        rule: VerificationRule = "coupled",
        threads: int | None = None,
        max_context: int | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Load the models.

        ``target``: a path (Hugging Face folder or .gguf), a hub id ``org/name[@revision][:file]``, an alias, or another
        LLM's ``target`` to share its weights. ``draft``: the same, or ``"lookup"`` (prompt lookup), ``"suffix"``,
        ``"embedded"`` (the draft that is shipped for the target), a mix such as ``"embedded+lookup"``, ``"auto"`` (that
        mix where a draft is shipped, else prompt lookup), another LLM's ``drafter``, ``"none"`` or None.
        ``prompt_format``: for ``chat``; None is the model's own template, or else Alpaca. ``backend``: ``"native"``,
        ``"torch"`` or ``"auto"``, which takes torch for what native does not run and where there is a GPU for a Hugging
        Face folder. ``device``: for torch, ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        ``draft_backend`` and ``draft_device``: those of the draft model, where it is not to run as the target does.
        ``exact``: on torch, make the text that a drafter helps with identical to the one without, at the price of wider
        steps (native always is). ``quantize``: None, ``"4bit"`` or ``"8bit"``. ``kv_dtype``: of keys and values,
        ``"float16"`` (``"float32"`` for float32 models), or ``"int8"``, which takes about half the memory; native only.
        ``num_draft_tokens``: how many to draft a round. ``rule``: how sampled drafts are verified; ``"coupled"`` gives
        the same text as no drafter.

        Raises UsageError, HubError, CheckpointError, TokenizerError, TemplateError, OutOfMemory.
        """
        self._options = EngineOptions(
            backend=backend,
            device=device,
            draft_backend=draft_backend,
            draft_device=draft_device,
            exact=exact,
            dtype=dtype,
            quantize=quantize,
            kv_dtype=kv_dtype,
            num_draft_tokens=num_draft_tokens,
            rule=rule,
            threads=threads,
            max_context=max_context,
        )
        if num_draft_tokens != "auto" and draft in (None, "none"):
            raise UsageError(f"num_draft_tokens {num_draft_tokens} and draft none contradict each other; give one")
        began = time.perf_counter()
        self._target = target if isinstance(target, LoadedModel) else load_model(target, self._options, progress)
        self._format_choice = prompt_format
        if prompt_format is not None:
            _ = self.prompt_format  # told now if it is wrong; the model's own is prepared when it is needed
        self._grammars = GrammarCompiler(self._target.tokenizer)
        self._store = SequenceStore(self._target.model)
        self._calibration: Calibration | None = None
        self._engine: Engine | None = None
        self._drafter: LoadedDrafter | None = None
        self._plain_rounds: deque[float] = deque(maxlen=64)
        self.use_draft(draft, progress=progress)
        self._load_s = time.perf_counter() - began

    @property
    def target(self) -> LoadedModel:
        """The target with its tokenizer; give it to another LLM to share the weights."""
        return self._target

    @property
    def name(self) -> str:
        """What the target was asked for by."""
        return self._target.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        return self._target.tokenizer

    @property
    def max_context(self) -> int:
        """Tokens of prompt and reply together that fit."""
        return self._target.model.max_context

    @cached_property
    def prompt_format(self) -> PromptFormat:
        """How ``chat`` writes messages."""
        return choose_format(self._target.tokenizer, self._format_choice)

    @property
    def drafter_name(self) -> str:
        """The drafter in use; ``none`` without one."""
        return self._drafter.drafter.name if self._drafter is not None else "none"

    @property
    def drafter(self) -> LoadedDrafter | None:
        """The drafter in use; give it to another LLM with the same target to share the draft model's weights.

        Recorders that were put in by ``record`` are part of it.
        """
        return self._drafter

    @property
    def draft_model(self) -> Model | None:
        """The model behind the drafter, if there is one."""
        return self._drafter.model if self._drafter is not None else None

    @property
    def drafter_note(self) -> str | None:
        """What there is to know of how the draft model is used, one sentence: another vocabulary, for example."""
        return self._drafter.note if self._drafter is not None else None

    @property
    def load_s(self) -> float:
        """Seconds that loading took."""
        return self._load_s

    @property
    def plain_step_s(self) -> float:
        """Seconds that one token takes without a drafter.

        The median of the latest rounds that checked no draft; where there were too few, a measurement on its own.
        """
        if len(self._plain_rounds) >= MIN_PLAIN_ROUNDS:
            return median(self._plain_rounds)
        return self._calibrated().steps.plain_s

    def use_draft(self, draft: DraftChoice, *, progress: Progress = no_progress) -> None:
        """Change the drafter; the conversation's caches stay. If the new one cannot be loaded, the old one stays."""
        self._drafter = load_drafter(draft, self._target, self._options, progress)
        self._store.forget_drafter()
        self._calibration = self._engine = None
        self._policy = self._new_policy()

    @property
    def step_costs(self) -> StepCosts:
        """What drafting and checking cost here: from an earlier start, or measured on first use."""
        return self._calibrated().steps

    def record(self) -> TracedDrafter:
        """Record every round from now on, until the drafter is changed. Raises UsageError when there is none."""
        return self.wrap_drafter(TracedDrafter)

    def wrap_drafter(self, wrap: Callable[[Drafter], Wrapped]) -> Wrapped:
        """Put something between the drafter and its users, until it is changed. Raises UsageError without a drafter."""
        if self._drafter is None:
            raise UsageError("There is nothing to trace without a drafter; choose one, for example --draft lookup")
        wrapped = wrap(self._drafter.drafter)
        self._drafter = dataclasses.replace(self._drafter, drafter=wrapped)
        self._store.forget_drafter()
        self._engine = None
        return wrapped

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue each prompt as it stands (no prompt format). One prompt gives a list of one.

        ``sampling``: for all of them, or a list with one for each.

        Several prompts are written together, each with the tokens that it would have alone. Drafts that are sampled
        under the rejection rule are the exception: there the text depends on their lengths, so it is one by one.

        Raises PromptTooLong, UsageError.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        every = cast("Sequence[Prompt]", [prompts] if single else prompts)
        params = _one_for_each(sampling, len(every))
        alone = self._options.rule == "rejection" and self._drafter is not None and not all(p.greedy for p in params)
        if len(every) > 1 and not alone:
            return self._generate_together(every, params)
        return [self.stream(prompt, each).wait() for prompt, each in zip(every, params, strict=True)]

    def chat(self, messages: Sequence[Message], sampling: SamplingParams | None = None) -> Completion:
        """The assistant's next message, in the model's prompt format.

        Raises TemplateError, PromptTooLong, UsageError.
        """
        return self.stream_chat(messages, sampling).wait()

    def stream(
        self, prompt: Prompt, sampling: SamplingParams | None = None, on_prompt: PromptProgress | None = None
    ) -> TextStream:
        """Like ``generate`` for one prompt, piece by piece. ``on_prompt(read, all)`` counts the prompt's tokens while
        they are read, for a progress bar.
        """
        params = sampling or SamplingParams()
        return self._start(self._ids_of(prompt), params, params.stop, on_prompt)

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        on_prompt: PromptProgress | None = None,
    ) -> TextStream:
        """Like ``chat``, piece by piece; ``on_prompt`` as in ``stream``."""
        params = sampling or SamplingParams()
        prompt = self.prompt_format.encode(messages, add_generation_prompt=True)
        return self._start(prompt.token_ids, params, (*params.stop, *self.prompt_format.stop_strings), on_prompt)

    def _ids_of(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def _request(
        self, prompt_ids: tuple[int, ...], params: SamplingParams, stops: Sequence[str]
    ) -> tuple[Request, Reply]:
        """What is asked of the model, with a seed where one is needed, and what gathers the reply."""
        self._check_ids(prompt_ids, "the prompt")
        self._check_ids(params.logit_bias, "logit_bias")
        seed = None if params.greedy else secrets.randbits(63) if params.seed is None else params.seed
        request = Request(
            prompt_ids=prompt_ids,
            sampling=dataclasses.replace(params, seed=seed or 0),
            constraint=self._grammars.compile(params.grammar) if params.grammar is not None else None,
        )
        drafter = self._drafter.drafter.name if self._drafter is not None else None
        return request, Reply(TextAssembler(self.tokenizer, stops), request, drafter=drafter, seed=seed)

    def _generate_together(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> list[Completion]:
        """All prompts through the batched engine, which stays for what it learns of the drafter."""
        if self._engine is None:
            k = self._options.num_draft_tokens
            self._engine = Engine(
                self._target.model,
                eos_ids=self.tokenizer.eos_ids,
                drafter=self._drafter.drafter if self._drafter is not None else None,
                draft_model=self._drafter.model if self._drafter is not None else None,
                costs=lambda: self._calibrated().steps.costs,
                num_draft_tokens=None if k == "auto" else k,
                rule=self._options.rule,
                limits=EngineLimits(max_waiting=sys.maxsize),
            )
        texts = [
            self._request(self._ids_of(prompt), each, each.stop) for prompt, each in zip(prompts, params, strict=True)
        ]
        return write_together(self._engine, texts, self._load_s)

    def _start(
        self,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        stops: Sequence[str],
        on_prompt: PromptProgress | None,
    ) -> TextStream:
        request, reply = self._request(prompt_ids, params, stops)
        drafter = self._drafter.drafter if self._drafter is not None else None
        state = self._store.take(request, drafter, self._options.rule)
        policy = self._policy_for(params, len(prompt_ids))
        measured = drafter is not None and self._options.num_draft_tokens == "auto"

        def hear(times: RoundTimes) -> None:
            reply.see(times)
            if measured:
                self._calibrated().live.see(times)

        rounds = generate(
            self._target.model,
            state.cache,
            request,
            eos_ids=self.tokenizer.eos_ids,
            session=state.session,
            policy=policy,
            rule=self._options.rule,
            on_round=hear,
            on_prompt=on_prompt,
        )

        def prepare() -> None:
            if isinstance(policy, MeasuredLength):
                policy.prepare()
                self._calibrated().live.follow(len(prompt_ids))

        def end(token_ids: tuple[int, ...] | None) -> None:
            self._store.give_back(state, token_ids)
            if self._calibration is not None:
                self._calibration.live.end_text()
                self._calibration.refresh()

        return TextStream(
            rounds,
            reply,
            load_s=self._load_s,
            before_drafting=prepare if drafter is not None else None,
            on_plain_round=self._plain_rounds.append,
            on_end=end,
        )

    def _check_ids(self, token_ids: Iterable[int], where: str) -> None:
        width = self._target.model.vocab_size
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < width), None)
        if wrong is not None:
            raise UsageError(f"{where} has the token id {wrong}; {self.name} has ids from 0 to {width - 1}")

    def _policy_for(self, params: SamplingParams, context: int) -> LengthPolicy:
        """The policy keeps what it has learnt and follows the clock, except where the text depends on the lengths of
        drafts: there all requests start alike, with the costs as first measured for texts of such a length.
        """
        if self._options.num_draft_tokens == "auto" and self._options.rule == "rejection" and not params.greedy:
            return MeasuredLength(lambda: self._calibrated().steps.at(context).costs)
        return self._policy

    def _new_policy(self) -> LengthPolicy:
        if self._options.num_draft_tokens == "auto":
            return MeasuredLength(lambda: self._calibrated().live)
        return FixedLength(self._options.num_draft_tokens)

    def _calibrated(self) -> Calibration:
        """The costs of steps, known on first use."""
        if self._calibration is None:
            self._calibration = Calibration(self._target, self._drafter, self._options.threads)
        return self._calibration


def _one_for_each(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    """Raises UsageError when the list has another length than the prompts."""
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * count
    if len(sampling) != count:
        raise UsageError(f"sampling is a list of {len(sampling)} for {count} prompts; give as many, or one for all")
    return sampling
