"""The requests that the API takes, checked strictly: what is not here is refused by name, never ignored.

Fields and meaning are OpenAI's, and vLLM's for what OpenAI lacks (top_k, min_p, repetition_penalty, ignore_eos). Our
own are ``draft``, ``num_draft_tokens`` and ``return_pieces``. Fields that are null count as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, from_json

from draftsmith.engine.grammar import MAX_GRAMMAR
from draftsmith.server.fields import (
    MAX_MESSAGES,
    MAX_TOOLS,
    WHOLE,
    ChatMessage,
    Off,
    ResponseFormat,
    Strict,
    Tool,
    ToolChoice,
    calls_grammar,
    shorter_than,
    wrong_field,
)
from draftsmith.server.markdown import MAX_TEXT
from draftsmith.server.problems import ApiError
from draftsmith.types import MAX_SEED, Grammar, GrammarKind, SamplingParams

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "Generate",
    "RenderRequest",
    "TokenizeRequest",
    "parse",
]

MAX_CHOICES = 8
MAX_PROMPTS = 64
MAX_BIASES = 1024
MAX_METADATA = 16
MAX_IDS = 1 << 18
MAX_TOP_LOGPROBS = 20

_DEFAULT = SamplingParams()
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Strict):
    """``include_usage``: a last chunk with the token counts. ``continuous_usage_stats``: then also those so far with
    every chunk, as vLLM does. ``include_obfuscation`` is not done, so only false.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Off = False


class Generate(Strict):
    """What both endpoints share. Defaults of sampling are the model card's, as on the command line."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] = 1
    temperature: Annotated[float, Field(ge=0, le=100)] = _DEFAULT.temperature
    top_p: Annotated[float, Field(gt=0, le=1)] = _DEFAULT.top_p
    top_k: Annotated[int, Field(ge=-1), WHOLE] = _DEFAULT.top_k
    min_p: Annotated[float, Field(ge=0, le=1)] = _DEFAULT.min_p
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
        shorter_than(MAX_BIASES),
    ] = {}  # noqa: RUF012  # pydantic copies it
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4, fail_fast=True)] = []  # noqa: RUF012
    ignore_eos: bool = False
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR)] | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR)] | None = None
    draft: bool = True
    num_draft_tokens: Annotated[int, Field(ge=0, le=64), WHOLE] | None = None
    return_pieces: bool = False
    user: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA), shorter_than(MAX_METADATA)] | None = None
    store: Off = False

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Generate:
        if self.stream_options != StreamOptions() and not self.stream:
            raise wrong_field("stream_options", "needs stream to be true")
        if len(self.forms) > 1:
            first, *others = self.forms
            raise wrong_field(first, f"and {' and '.join(others)} contradict each other; give one of them")
        if self.forms and self.ignore_eos:
            raise wrong_field("ignore_eos", "contradicts a reply of a given form, which ends where the form does")
        return self

    @property
    def forms(self) -> dict[str, Grammar]:
        """What the reply must look like, by the field that asks for it. There is at most one."""
        given = {"grammar": self.grammar, "regex": self.regex}
        kinds: dict[str, GrammarKind] = {"grammar": "grammar", "regex": "regex"}
        return {name: Grammar(kinds[name], text) for name, text in given.items() if text is not None}

    @property
    def reply_limit(self) -> int | None:
        """Tokens of reply; None: as many as the context holds."""
        raise NotImplementedError

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with every token; None: no report."""
        raise NotImplementedError

    def sampling(self, seed: int, room: int, extra_stops: tuple[str, ...] = ()) -> SamplingParams:
        """As the engine wants it; ``room`` tokens of context are left. Raises UsageError."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return SamplingParams(
            max_new_tokens=max(1, room if self.reply_limit is None else min(self.reply_limit, room)),
            temperature=float(self.temperature),
            top_k=max(0, self.top_k),
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            logit_bias={int(token_id): float(bias) for token_id, bias in self.logit_bias.items()},
            seed=seed,
            stop=(*stops, *extra_stops),
            ignore_eos=self.ignore_eos,
            logprobs=self.num_logprobs,
            grammar=next(iter(self.forms.values()), None),
        )


_Length = Annotated[int, Field(ge=1), WHOLE]


class ChatRequest(Generate):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: _Length | None = None
    max_completion_tokens: _Length | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _tools_that_are_there(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise wrong_field("tools", "has two functions of one name")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise wrong_field("tool_choice", "names a function that is not among the tools")
        if self.tool_choice == "required" and not names:
            raise wrong_field("tool_choice", "is required, but there are no tools")
        return self

    @property
    def usable_tools(self) -> list[Tool]:
        """Those that may be called."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """``usable_tools`` as chat templates expect them."""
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.usable_tools]

    @property
    def forms(self) -> dict[str, Grammar]:
        """See ``Generate``."""
        forms = super().forms
        form = self.response_format.form if self.response_format is not None else None
        if form is not None:
            forms["response_format"] = form
        if self.tool_choice == "required":
            forms["tool_choice"] = calls_grammar(self.usable_tools, several=self.parallel_tool_calls)
        elif isinstance(self.tool_choice, ToolChoice):
            chosen = [tool for tool in self.usable_tools if tool.function.name == self.tool_choice.function.name]
            forms["tool_choice"] = calls_grammar(chosen, several=False)
        return forms

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong_field("top_logprobs", "needs logprobs to be true")
        return self

    @property
    def reply_limit(self) -> int | None:
        """See ``Generate``."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See ``Generate``."""
        return (self.top_logprobs or 0) if self.logprobs else None


_TokenId = Annotated[int, Field(ge=0), WHOLE]
_TokenIds = Annotated[list[_TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]


class CompletionRequest(Generate):
    """The body of /v1/completions."""

    prompt: (
        str
        | _TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[_TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: _Length = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = None
    best_of: Annotated[int, WHOLE] | None = None
    return_tokens_as_token_ids: bool = False

    @model_validator(mode="after")
    def _what_is_not_done(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise wrong_field("best_of", "is not supported, except when it equals n")
        if len(self.prompts) * self.n > MAX_PROMPTS:
            raise wrong_field("prompt", f"times n is more than {MAX_PROMPTS} replies")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, also when there is only one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def reply_limit(self) -> int | None:
        """See ``Generate``."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See ``Generate``."""
        return self.logprobs


class TokenizeRequest(Strict):
    """The body of /tokenize: a text, or messages in the model's prompt format."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}}},
            ]
        }
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise wrong_field("prompt", "or messages: give one of the two")
        return self


class RenderRequest(Strict):
    """The body of /render: Markdown, for the chat page."""

    text: Annotated[str, Field(max_length=MAX_TEXT)]


class DetokenizeRequest(Strict):
    """The body of /detokenize."""

    model: str | None = None
    tokens: Annotated[list[_TokenId], Field(max_length=MAX_IDS, fail_fast=True)]


Body = TypeVar("Body", bound=Strict)


def parse(kind: type[Body], data: bytes) -> Body:
    """The body of a request. Raises ApiError that names the first field that is wrong."""
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is no valid JSON ({error}); send one JSON object", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be one JSON object", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _first_problem(error) from None


def _first_problem(error: ValidationError) -> ApiError:
    """What is said of the first field that is wrong. Lists end at their first wrong item, so there are few errors."""
    problems = error.errors(include_url=False, include_input=False)
    field = problems[0]["loc"][:1]
    # Of a value that may be of several kinds, each kind complains; the one that it comes closest to says most.
    problem = max((one for one in problems if one["loc"][:1] == field), key=_nearness)
    path = [str(part) for i, part in enumerate(problem["loc"]) if not i or not _is_kind(part)]
    if problem["type"] == "wrong_field":
        path.append(problem["ctx"]["field"])
        what = problem["ctx"]["problem"]
        code = "unsupported_parameter" if "not supported" in what else "invalid_value"
        return ApiError(400, f"{'.'.join(path)} {what}", param=".".join(path), code=code)
    param = ".".join(path)
    what = str(problem["msg"]).partition(" or instance of ")[0].replace("dictionary", "object")
    codes = {"missing": "missing_parameter", "not_done": "unsupported_parameter"}
    code = codes.get(problem["type"], "invalid_value")
    return ApiError(400, f"{param}: {what[:1].lower()}{what[1:]}", param=param, code=code)


def _nearness(problem: ErrorDetails) -> tuple[bool, int]:
    return not problem["type"].endswith("_type"), len(problem["loc"])


def _is_kind(part: str | int) -> bool:
    """Whether a step of a path is pydantic's name for a kind of value rather than a field or an index."""
    return isinstance(part, str) and (
        part in ("str", "bool") or part[:1].isupper() or not (part.isalnum() or part.isidentifier())
    )
