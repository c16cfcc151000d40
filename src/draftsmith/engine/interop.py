"""draftsmith's drafters inside ``model.generate`` of ``transformers``, by its documented ``custom_generate`` argument.

    model.generate(**inputs, custom_generate=speculative_generate("lookup"), do_sample=False)

``transformers`` chooses its own candidate generators in a private method, so there is no public way to add one; a
function as ``custom_generate`` is given the prepared prompt and settings instead, and runs the loop of ``speculate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from draftsmith.engine.loading import load_model
from draftsmith.engine.options import EngineOptions
from draftsmith.errors import UsageError
from draftsmith.speculate import Drafter, FixedLength, ModelDrafter, PromptLookupDrafter, SuffixDrafter, generate
from draftsmith.types import Request, SamplingParams, VerificationRule

__all__ = ["speculative_generate"]

_KNOWN = frozenset(
    {
        "EosTokenCriteria",
        "MaxLengthCriteria",
        "MinPLogitsWarper",
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
    }
)


def speculative_generate(
    draft: str | Path | Drafter,
    *,
    num_draft_tokens: int = 4,
    rule: VerificationRule = "coupled",
    options: EngineOptions | None = None,
) -> Callable[..., Any]:
    """What ``model.generate`` takes as ``custom_generate``.

    ``draft``: ``"lookup"``, ``"suffix"``, a drafter, or a model of the same vocabulary, loaded with ``options``. The
    returned function gives the prompt with the reply, as ``generate`` does; sampled text is drawn with a seed from
    torch's generator, so ``torch.manual_seed`` governs it, but it is not the text that ``generate`` would sample.
    It raises UsageError for several prompts at once, beams, and processors or criteria that draftsmith does not have.
    """
    load = _drafter(draft, options or EngineOptions())

    def decode(
        model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **_: Any
    ) -> Any:
        from draftsmith.model.torch_backend import TorchModel

        _refuse(input_ids, generation_config, (*logits_processor, *stopping_criteria))
        [prompt] = input_ids.tolist()
        length = int(generation_config.max_length)
        target = TorchModel(model, max_context=length)
        params = _sampling(generation_config, length - len(prompt), int(input_ids.new_empty(1).random_(0, 1 << 62)))
        request = Request(prompt_ids=tuple(prompt), sampling=params)
        session = load(target.vocab_size).start(request, rule)
        written = list(prompt)
        for finished in generate(
            target,
            target.new_cache(),
            request,
            eos_ids=_eos_ids(generation_config),
            session=session,
            policy=FixedLength(num_draft_tokens),
            rule=rule,
        ):
            written += finished.token_ids
        return input_ids.new_tensor([written])

    return decode


def _drafter(draft: str | Path | Drafter, options: EngineOptions) -> Callable[[int], Drafter]:
    """How to get the drafter for a target with logits of a given width; a model is loaded now, once."""
    if draft == "lookup":
        return lambda _: PromptLookupDrafter()
    if draft == "suffix":
        return lambda _: SuffixDrafter()
    if isinstance(draft, str | Path):
        loaded = load_model(draft, options)
        return lambda width: ModelDrafter(loaded.model, target_vocab_size=width, name=loaded.name)
    return lambda _: draft


def _refuse(input_ids: Any, config: Any, parts: Iterable[object]) -> None:
    """Raises UsageError for what would be ignored otherwise."""
    if (config.num_beams or 1) > 1:
        raise UsageError(f"num_beams is {config.num_beams}; speculative decoding samples or is greedy, leave it out")
    if input_ids.shape[0] != 1:
        raise UsageError(f"speculative_generate was given {input_ids.shape[0]} prompts at once; give one")
    if config.return_dict_in_generate:
        raise UsageError("return_dict_in_generate is on; speculative_generate returns token ids, leave it out")
    unknown = sorted({type(part).__name__ for part in parts} - _KNOWN)
    if unknown:
        raise UsageError(f"{unknown[0]} is not known to draftsmith; leave out the option that brings it in")


def _sampling(config: Any, max_new_tokens: int, seed: int) -> SamplingParams:
    def given(name: str, off: Any) -> Any:
        value = getattr(config, name, None)
        return off if value is None else value

    greedy = not config.do_sample
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        greedy=greedy,
        temperature=1.0 if greedy else given("temperature", 1.0),
        top_k=0 if greedy else given("top_k", 0),
        top_p=1.0 if greedy else given("top_p", 1.0),
        min_p=0.0 if greedy else given("min_p", 0.0),
        repetition_penalty=given("repetition_penalty", 1.0),
        seed=seed,
    )


def _eos_ids(config: Any) -> tuple[int, ...]:
    ids = config.eos_token_id
    if ids is None:
        return ()
    return (int(ids),) if isinstance(ids, int) else tuple(int(i) for i in ids)
