"""The options that commands share, as frozen values, and the decorator-free way to hand them to typer.

A command is a function whose parameters are typer's own (``Annotated[..., typer.Option(...)]``) or one of the
dataclasses below; ``add_command`` spreads the fields of such a dataclass into options and gathers them again.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.types import SamplingParams

__all__ = ["ModelOptions", "OutputOptions", "SamplingOptions", "add_command"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which models to run and how. The names are those of ``LLM``'s arguments."""

    target: Annotated[
        str,
        typer.Option(
            metavar="REF",
            help="The model that writes: a .gguf file, a Hugging Face folder, org/name[@revision][:file], or an alias.",
        ),
    ] = "smollm2-135m-instruct"
    draft: Annotated[
        str,
        typer.Option(
            metavar="REF|lookup|suffix|REF+lookup|none|auto",
            help="The drafter that guesses ahead: a model with any tokenizer, copies from the text itself, or both.",
        ),
    ] = "auto"
    backend: Annotated[
        str,
        typer.Option(
            metavar="auto|native|torch",
            help="What runs the models; auto takes torch for what native does not run, and on a GPU.",
        ),
    ] = "auto"
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where the torch backend runs; native runs on the CPU.")
    ] = "auto"
    draft_backend: Annotated[
        str | None, typer.Option(metavar="auto|native|torch", help="The draft model's, if not the target's.")
    ] = None
    draft_device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="The draft model's, if not the target's.")
    ] = None
    exact: Annotated[
        bool, typer.Option("--exact", help="On torch: the same text, to the token, with a drafter as without.")
    ] = False
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|float32|bfloat16|float16", help="Precision of weights that are not quantised."),
    ] = "auto"
    quantize: Annotated[
        str, typer.Option(metavar="4bit|8bit|none", help="Quantise 16- and 32-bit weights while loading.")
    ] = "none"
    kv_dtype: Annotated[
        str,
        typer.Option(
            metavar="auto|float32|float16|int8",
            help="Precision of keys and values; int8 halves a long context's memory.",
        ),
    ] = "auto"
    num_draft_tokens: Annotated[
        str, typer.Option(metavar="auto|K", help="Draft tokens a round; auto follows the acceptance.")
    ] = "auto"
    rule: Annotated[
        str,
        typer.Option(
            metavar="coupled|rejection",
            help="How sampled drafts are verified; coupled gives the same text as no drafter.",
        ),
    ] = "coupled"
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads; all processors if not given.")] = None
    max_context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of context; the model's own if not given.")
    ] = None

    def for_llm(self) -> dict[str, Any]:
        """The keyword arguments of ``LLM``. Raises UsageError."""
        return {
            "target": self.target,
            "draft": self.draft,
            "backend": self.backend,
            "device": self.device,
            "draft_backend": self.draft_backend,
            "draft_device": self.draft_device,
            "exact": self.exact,
            "dtype": self.dtype,
            "quantize": None if self.quantize == "none" else self.quantize,
            "kv_dtype": self.kv_dtype,
            "num_draft_tokens": _draft_length(self.num_draft_tokens),
            "rule": self.rule,
            "threads": self.threads,
            "max_context": self.max_context,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. The names and defaults are those of ``SamplingParams``."""

    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The longest reply, in tokens.")] = 256
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Randomness; 0 is greedy, and 0.7 if neither is given.")
    ] = None
    top_k: Annotated[int, typer.Option(metavar="K", help="Keep the K likeliest tokens; 0 is off.")] = 50
    top_p: Annotated[float, typer.Option(metavar="P", help="Keep the likeliest tokens of mass P; 1 is off.")] = 0.95
    min_p: Annotated[
        float, typer.Option(metavar="P", help="Drop tokens less likely than P times the likeliest; 0 is off.")
    ] = 0.0
    repetition_penalty: Annotated[
        float, typer.Option(metavar="X", help="Divide the logits of tokens seen in prompt or reply; 1 is off.")
    ] = 1.0
    presence_penalty: Annotated[
        float, typer.Option(metavar="X", help="Subtract from tokens that the reply has; 0 is off.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, typer.Option(metavar="X", help="Subtract for each time that the reply has a token; 0 is off.")
    ] = 0.0
    logit_bias: Annotated[
        list[str], typer.Option(metavar="ID:X", help="Add X to the logit of token ID; repeatable.", show_default=False)
    ] = dataclasses.field(default_factory=list)
    stop: Annotated[
        list[str], typer.Option(metavar="TEXT", help="End the reply before this text; repeatable.", show_default=False)
    ] = dataclasses.field(default_factory=list)
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Write on after the end-of-text token.")] = False
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The same seed gives the same text; drawn if not given.")
    ] = None
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False

    def for_llm(self) -> SamplingParams:
        """Raises UsageError when values are out of range or contradict each other."""
        from draftsmith.types import SamplingParams

        if self.greedy and self.temperature:
            raise UsageError(f"--greedy and --temperature {self.temperature:g} contradict each other; give one of them")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["temperature"] = SamplingParams().temperature if self.temperature is None else self.temperature
        values["stop"] = tuple(self.stop)
        values["logit_bias"] = dict(_bias(entry) for entry in self.logit_bias)
        return SamplingParams(**values)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What a person sees besides the text."""

    color: Annotated[
        str, typer.Option(metavar="auto|always|never", help="Tint the tokens that the drafter got right.")
    ] = "auto"
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no status line.")] = False


def add_command(
    app: typer.Typer, function: Callable[..., object], called: str | None = None, *, environment: str | None = None
) -> None:
    """Register ``function`` (as ``called``, else under its own name), its option dataclasses spread into options.

    ``environment``: every option can also be a variable with this prefix, ``--max-running`` as PREFIX_MAX_RUNNING.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _spread(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    if environment is not None:
        parameters = [_without_variable(one) for one in parameters]

    def command(**values: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{field: values.pop(field) for field in fields})
        function(**values)

    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {}
    settings = {"auto_envvar_prefix": environment} if environment is not None else None
    app.command(called or function.__name__.strip("_"), context_settings=settings)(command)


def _without_variable(parameter: inspect.Parameter) -> inspect.Parameter:
    """The same option, whose help does not name its environment variable: one sentence says it of all."""
    kind, info = parameter.annotation.__origin__, copy.copy(parameter.annotation.__metadata__[0])
    info.show_envvar = False  # typer's own words for each would double the length of the help
    return parameter.replace(annotation=Annotated[kind, info])


def _spread(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in dataclasses.fields(group):
        default = field.default
        if default is dataclasses.MISSING:  # a list of its own each time, or an option that must be given
            default = inspect.Parameter.empty if field.default_factory is dataclasses.MISSING else []
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )
    return parameters


def _draft_length(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--num-draft-tokens is {text!r}; it must be auto or a whole number") from None


def _bias(entry: str) -> tuple[int, float]:
    token_id, _, bias = entry.rpartition(":")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise UsageError(f"--logit-bias is {entry!r}; write it as ID:X, for example 42:-1.5") from None
