"""``draftsmith bench --endpoint``: the same prompts to servers, and to a pair of our own beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from draftsmith.cli.measuring import MeasureOptions, ResultOptions, Ticker
from draftsmith.cli.options import ModelOptions
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.measure.contest import Side
    from draftsmith.measure.endpoint import Endpoint
    from draftsmith.types import SamplingParams

__all__ = ["EndpointOptions", "bench_endpoints", "own_pair_asked"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """Which servers to measure, and how to talk to them."""

    endpoint: Annotated[
        list[str],
        typer.Option(
            metavar="URL",
            help="Measure an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1; repeatable. "
            "A pair of our own takes part if --target or --draft is given too.",
            show_default=False,
        ),
    ] = dataclasses.field(default_factory=list)
    endpoint_model: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="The model's name there, for each endpoint in turn.", show_default=False),
    ] = dataclasses.field(default_factory=list)
    api_key_file: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="A file with the API key, for each endpoint in turn, or one for all; else "
            "DRAFTSMITH_ENDPOINT_KEY or OPENAI_API_KEY is sent.",
            show_default=False,
        ),
    ] = dataclasses.field(default_factory=list)
    completions: Annotated[
        bool, typer.Option("--completions", help="Send prompts as plain text to /completions, not as messages.")
    ] = False
    endpoint_plain: Annotated[
        bool,
        typer.Option(
            "--endpoint-plain",
            help="Ask each endpoint with its drafting switched off too (draftsmith serve, llama-server).",
        ),
    ] = False

    def check(self) -> None:
        """Raises UsageError when options do not go together."""
        for name, given in (("--endpoint-model", self.endpoint_model), ("--api-key-file", self.api_key_file)):
            if given and not self.endpoint:
                raise UsageError(f"{name} says nothing without --endpoint URL; give both or neither")
            if len(given) > 1 and len(given) != len(self.endpoint):
                raise UsageError(
                    f"{name} is given {len(given)} times for {len(self.endpoint)} endpoints; give one each"
                )
        if (self.completions or self.endpoint_plain) and not self.endpoint:
            raise UsageError("--completions and --endpoint-plain are about servers; give one with --endpoint URL")

    def find(self) -> list[Endpoint]:
        """The endpoints, asked for their models. Raises UsageError, DraftsmithError."""
        from draftsmith.measure.endpoint import find_endpoint

        names = [*self.endpoint_model, *[None] * (len(self.endpoint) - len(self.endpoint_model))]
        keys = self._keys()
        return [
            find_endpoint(address, name, chat=not self.completions, key=key)
            for address, name, key in zip(self.endpoint, names, keys, strict=True)
        ]

    def _keys(self) -> list[str | None]:
        from draftsmith.measure.endpoint import key_from_environment

        if not self.api_key_file:
            return [key_from_environment()] * len(self.endpoint)
        keys: list[str | None] = [_key_in(name) for name in self.api_key_file]
        return keys * len(self.endpoint) if len(keys) == 1 else keys


def bench_endpoints(
    endpoints: EndpointOptions,
    sampling: SamplingParams,
    repeat: int,
    measure: MeasureOptions,
    result: ResultOptions,
    model: ModelOptions | None,
) -> None:
    """Measure the servers, and the pair of ``model`` beside them unless that is None."""
    items = measure.items()
    found = endpoints.find()
    own = [] if model is None else _own_sides(model, result)
    sides = [*own, *_server_sides(found, plain_too=endpoints.endpoint_plain)]
    from draftsmith.measure.contest import run_contest
    from draftsmith.measure.contest_output import contest_details, contest_json, contest_text
    from draftsmith.measure.origin import measurement_origin

    ticker = Ticker(result.quiet)
    try:
        told = run_contest(sides, items, sampling, chat=not endpoints.completions, repeats=repeat, report=ticker)
    finally:
        ticker.close()
    options = {
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "repeat": repeat,
        "max_new_tokens": sampling.max_new_tokens,
        "completions": endpoints.completions,
    }
    models = {} if model is None else {"target": model.target, "draft": model.draft}
    origin = measurement_origin(models, options, measure.path)
    told_of = [{"address": one.address, "model": one.model, "server": one.kind} for one in found]
    value = contest_json(told, {**origin, "endpoints": told_of})
    result.give(value, contest_text(value), contest_details(told))


def own_pair_asked(context: typer.Context) -> bool:
    """Whether --target or --draft was typed: their defaults, and those of a configuration file, ask for nothing."""
    sources = (context.get_parameter_source(name) for name in ("target", "draft"))
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _own_sides(model: ModelOptions, result: ResultOptions) -> list[Side]:
    with ProgressBars(quiet=result.quiet) as progress:
        from draftsmith.engine import LLM
        from draftsmith.measure.contest import LocalSide
        from draftsmith.measure.pair import load_pair

        options = model.for_llm()
        if model.draft == "none":
            return [LocalSide("here, plain", LLM(progress=progress, **options))]
        pair = load_pair(progress=progress, **options)
    return [
        LocalSide("here, plain", pair.plain),
        LocalSide(f"here, {pair.speculative.drafter_name}", pair.speculative),
    ]


def _server_sides(endpoints: list[Endpoint], *, plain_too: bool) -> list[Side]:
    from draftsmith.measure.contest import EndpointSide

    sides: list[Side] = []
    for endpoint in endpoints:
        name = f"{urlsplit(endpoint.address).netloc} {Path(endpoint.model).name}"
        if plain_too:
            sides.append(EndpointSide(f"{name}, plain", endpoint.without_drafting()))
        sides.append(EndpointSide(name, endpoint))
    return sides


def _key_in(name: str) -> str:
    """The first line of a file."""
    try:
        with Path(name).expanduser().open(encoding="utf-8") as file:
            key = file.readline(10_000).strip()
    except UnicodeDecodeError:
        raise UsageError(f"--api-key-file {name} is not text; give a file that holds the key alone") from None
    except OSError as error:
        raise UsageError(f"--api-key-file {name} cannot be read ({error.strerror}); give another file") from None
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(f"--api-key-file {name} holds no key on its first line; write the key there, alone")
    return key
