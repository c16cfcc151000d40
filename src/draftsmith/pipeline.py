"""``pipeline("text-generation", ...)``: the call that users of ``transformers`` know, run by draftsmith.

The snippet of the model card runs with its import line changed to ``from draftsmith import pipeline``. Arguments keep
their names and meaning; what cannot be honoured is refused in one sentence, never ignored.

This module is imported with the package, so it loads what it needs only when it is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.engine import LLM, DraftChoice, LoadedModel
    from draftsmith.types import Completion, Message, SamplingParams

__all__ = ["TextGenerationPipeline", "pipeline"]

_TASK = "text-generation"
# What transformers calls it, and what SamplingParams does.
_RENAMED = {"stop_strings": "stop", "stop_sequence": "stop"}


def pipeline(
    task: str = _TASK,
    model: str | Path | LoadedModel | None = None,
    *,
    draft: DraftChoice = "auto",
    revision: str | None = None,
    dtype: object = None,
    torch_dtype: object = None,
    device: object = None,
    device_map: object = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> TextGenerationPipeline:
    """Load a model and return what turns prompts into text.

    ``model`` is a path, a hub id or an alias (the default model if not given), ``draft`` a drafter, both as in ``LLM``.
    ``dtype`` (or ``torch_dtype``) is a name or a torch dtype; ``device`` and ``device_map`` name one place: ``"auto"``,
    ``"cpu"``, ``"cuda"``, a number ... ``load_in_4bit`` is done by the backend that runs the model: blocks of 4 bits on
    native, bitsandbytes' NF4 on torch. ``model_kwargs`` may hold the same arguments as this function. ``options`` go to
    ``LLM``: backend, threads, max_context, num_draft_tokens ...

    Raises UsageError for what cannot be honoured, and what ``LLM`` raises.
    """
    if model_kwargs:
        given: dict[str, Any] = {
            "revision": revision,
            "dtype": dtype,
            "torch_dtype": torch_dtype,
            "device_map": device_map,
        } | options
        both = sorted(name for name in model_kwargs if given.get(name) is not None)
        if both:
            raise UsageError(f"{both[0]} is given twice, also in model_kwargs; give it once")
        rest = {name: value for name, value in given.items() if value is not None}
        rest |= {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit, "trust_remote_code": trust_remote_code}
        return pipeline(task, model, draft=draft, device=device, **(rest | dict(model_kwargs)))
    if task != _TASK:
        raise UsageError(f"the task is {task!r}; draftsmith has {_TASK!r} only")
    if trust_remote_code:
        raise UsageError("trust_remote_code is on; draftsmith never runs code that comes with a model, leave it out")
    if load_in_4bit and load_in_8bit:
        raise UsageError("load_in_4bit and load_in_8bit contradict each other; give one of them")
    if dtype is not None and torch_dtype is not None and _dtype_name(dtype) != _dtype_name(torch_dtype):
        raise UsageError(f"dtype {dtype} and torch_dtype {torch_dtype} contradict each other; give one of them")
    place = _place(device, device_map)

    from draftsmith.engine import DEFAULT_TARGET, LLM

    if revision is not None and not isinstance(model, str):
        raise UsageError(f"revision is {revision!r}, but only a hub id as the model has revisions; leave it out")
    llm = LLM(
        DEFAULT_TARGET if model is None else model if revision is None else f"{model}@{revision}",
        draft=draft,
        dtype=_dtype_name(torch_dtype if dtype is None else dtype),  # type: ignore[arg-type]  # checked by LLM
        device=place,
        quantize="4bit" if load_in_4bit else "8bit" if load_in_8bit else None,
        **options,
    )
    return TextGenerationPipeline(llm)


class TextGenerationPipeline:
    """Prompts in, dictionaries with ``generated_text`` out. ``llm`` is the engine behind it."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def __call__(
        self,
        text_inputs: str | Sequence[Any],
        *,
        return_full_text: bool | None = None,
        num_return_sequences: int = 1,
        do_sample: bool | None = None,
        **generate_kwargs: Any,
    ) -> list[Any]:
        """Generate for a prompt, a conversation, or a list of either.

        A prompt is a string, continued as it stands; a conversation is a list of ``{"role", "content"}``. For one input
        the result is ``[{"generated_text": ...}]`` (one dictionary for each of ``num_return_sequences``), for a list of
        inputs a list of those. ``generated_text`` is prompt + reply, or the conversation with the reply as its last
        message; with ``return_full_text=False`` the reply alone. Other arguments are those of ``SamplingParams``.

        Raises UsageError for unknown arguments and values out of range, PromptTooLong.
        """
        params = _sampling(do_sample, generate_kwargs)
        if num_return_sequences < 1:
            raise UsageError(f"num_return_sequences is {num_return_sequences}; it must be at least 1")
        if isinstance(text_inputs, str) or _is_conversation(text_inputs):
            return self._generate(text_inputs, params, return_full_text is not False, num_return_sequences)
        if not text_inputs or not all(isinstance(item, str) or _is_conversation(item) for item in text_inputs):
            raise UsageError("the input is neither text nor messages with role and content nor a list of these")
        return [
            self._generate(item, params, return_full_text is not False, num_return_sequences) for item in text_inputs
        ]

    def _generate(self, item: Any, params: SamplingParams, full: bool, count: int) -> list[dict[str, Any]]:
        results = []
        for index in range(count):
            # Several sequences of one prompt differ by their seeds; with no seed given each draws its own.
            seed = params.seed if params.seed is None else params.seed + index
            completion = self._complete(item, dataclasses.replace(params, seed=seed))
            generated: Any = completion.text
            if full and isinstance(item, str):
                generated = item + completion.text
            elif full:
                generated = [*item, {"role": "assistant", "content": completion.text}]
            results.append({"generated_text": generated})
        return results

    def _complete(self, item: Any, params: SamplingParams) -> Completion:
        if isinstance(item, str):
            return self.llm.generate(item, params)[0]
        return self.llm.chat([_message(entry) for entry in item], params)


def _sampling(do_sample: bool | None, given: Mapping[str, Any]) -> SamplingParams:
    from draftsmith.types import SamplingParams

    known = {field.name for field in dataclasses.fields(SamplingParams)}
    values = {_RENAMED.get(name, name): value for name, value in given.items() if value is not None}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise UsageError(f"{unknown[0]} is not an argument of generation here; these are: {', '.join(sorted(known))}")
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    values["stop"] = tuple(values.get("stop", ()))
    if do_sample is False:
        values["greedy"] = True
    return SamplingParams(**values)


def _is_conversation(item: object) -> bool:
    return (
        isinstance(item, Sequence)
        and len(item) > 0
        and all(isinstance(entry, Mapping) and {"role", "content"} <= entry.keys() for entry in item)
    )


def _message(entry: Mapping[str, Any]) -> Message:
    from draftsmith.types import Message

    if not isinstance(entry["content"], str):
        raise UsageError(f"the content of a message is {type(entry['content']).__name__}; it must be text")
    return Message(str(entry["role"]), entry["content"])


def _dtype_name(dtype: object) -> str:
    """``torch.bfloat16`` and ``"bfloat16"`` alike, without importing torch."""
    return "auto" if dtype is None else str(dtype).removeprefix("torch.")


def _place(device: object, device_map: object) -> str:
    """The one place that the arguments of ``transformers`` name, as ``LLM`` calls it. Raises UsageError."""
    maps = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    places = {_place_name(place) for place in (device, *maps)} - {"auto"}
    if len(places) > 1:
        raise UsageError(f"device {device!r} and device_map {device_map!r} name several places; give one, or auto")
    return places.pop() if places else "auto"


def _place_name(place: object) -> str:
    """``torch.device`` objects and numbers (of CUDA devices, -1 for the processor) alike, without importing torch."""
    text = str(place)
    if text.lstrip("-").isdigit():
        return "cpu" if int(text) < 0 else f"cuda:{text}"
    return "auto" if place is None or text in ("auto", "balanced", "balanced_low_0", "sequential") else text
