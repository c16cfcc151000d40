"""``draftsmith plan --for ENGINE``: by whose costs, whether that engine takes the pair, and how it is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from draftsmith.errors import CheckpointError, HubError, TokenizerError, UsageError

if TYPE_CHECKING:
    from draftsmith.export.pair import Engine
    from draftsmith.export.source import Source
    from draftsmith.measure.engine_costs import EngineCosts

__all__ = ["EngineOptions", "launch_of"]

ENGINES = ("vllm", "sglang", "llama.cpp")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """For which engine, and what steps cost there."""

    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="|".join(ENGINES),
            help="Plan for another engine, by its costs (--cost or --cost-endpoint), and tell how to start it.",
            show_default=False,
        ),
    ] = None
    cost: Annotated[
        list[str],
        typer.Option(
            metavar="c=X|c:REF=X|d=X|v=M:X,M:X",
            help="A cost there in plain steps: c a draft step (of one candidate), d a call of the draft, "
            "v checking M tokens; repeatable.",
            show_default=False,
        ),
    ] = dataclasses.field(default_factory=list)
    costs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The same from a TOML or JSON file: c, d, v, candidates.", show_default=False
        ),
    ] = None
    cost_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Measure v at a server that runs the target there.", show_default=False),
    ] = None
    draft_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Measure c at a server that runs the draft there.", show_default=False),
    ] = None

    def check(self) -> None:
        """Raises UsageError when options do not go together."""
        given = [
            name
            for name, value in (
                ("--cost", self.cost),
                ("--costs", self.costs),
                ("--cost-endpoint", self.cost_endpoint),
                ("--draft-endpoint", self.draft_endpoint),
            )
            if value
        ]
        if self.for_ is None:
            if given:
                raise UsageError(f"{given[0]} is about another engine; name it with --for {'|'.join(ENGINES)}")
            return
        if self.for_ not in ENGINES:
            raise UsageError(f"--for is {self.for_!r}; it must be one of {', '.join(ENGINES)}")
        if not given:
            raise UsageError(
                f"plan needs the costs of steps on {self.for_}, which differ from ours; give --cost v=1:1,4:1.05,8:1.2 "
                "and --cost c=0.1, or --cost-endpoint URL"
            )
        if self.draft_endpoint is not None and self.cost_endpoint is None:
            raise UsageError("--draft-endpoint is compared with --cost-endpoint; give both")

    def known_costs(self) -> EngineCosts | None:
        """What the options say; endpoints are measured. None without ``--for``. Raises UsageError, DraftsmithError."""
        if self.for_ is None:
            return None
        from draftsmith.measure.engine_costs import measure_endpoint_costs, parse_costs, read_costs

        known = parse_costs(self.cost)
        if self.costs is not None:
            known = known.over(read_costs(Path(self.costs).expanduser()))
        if self.cost_endpoint is not None:
            draft = None if self.draft_endpoint is None else _plain_endpoint(self.draft_endpoint)
            known = known.over(measure_endpoint_costs(_plain_endpoint(self.cost_endpoint), draft))
        return known


def _plain_endpoint(address: str) -> Any:
    from draftsmith.measure.endpoint import find_endpoint, key_from_environment

    found = find_endpoint(address, key=key_from_environment())
    return found.without_drafting() if found.kind in ("draftsmith", "llama.cpp") else found


def launch_of(engine: str, target: str, draft: str, num_draft_tokens: int) -> dict[str, Any]:
    """How to start ``engine``: ``commands``, and ``notes`` on what it makes of the pair.

    ``draft``: a candidate of ``plan``, or ``none``.
    """
    from draftsmith.export.engines import launch_command

    if draft in ("none", "lookup"):
        notes = []
        if draft == "lookup":
            notes.append(f"{engine} looks for repetitions by rules of its own; the prediction is of draftsmith's")
        k = 0 if draft == "none" else num_draft_tokens
        return {"commands": [launch_command(engine, target, None, k)], "notes": notes}
    if draft == "embedded" or draft.endswith(("+lookup", "+suffix")) or draft == "suffix":
        return {"commands": [], "notes": [f"{engine} has no drafter such as {draft}; choose another candidate"]}
    import shlex

    from draftsmith.export.pair import fit
    from draftsmith.export.source import opened

    try:
        with opened(target) as target_source, opened(draft) as draft_source:
            padded = _needs_padding(cast("Engine", engine), target_source, draft_source)
            pair = fit(cast("Engine", engine), target_source, draft_source, pad_vocab=padded)
            wanted = "gguf" if engine == "llama.cpp" else "folder"
            kinds = (target_source.checkpoint.kind, draft_source.checkpoint.kind)
    except (UsageError, TokenizerError, CheckpointError, HubError) as error:
        return {"commands": [], "notes": [str(error)]}
    if padded or kinds != (wanted, wanted):
        words = ["draftsmith", "export", engine, draft, "pair", "--target", target]
        words += ["--num-draft-tokens", str(num_draft_tokens)]
        words += ["--pad-vocab"] if padded else []
        words += ["--copy-target"] if kinds[0] != wanted else []
        return {"commands": [shlex.join(words), "sh pair/launch.sh"], "notes": list(pair.notes)}
    command = launch_command(engine, target, draft, num_draft_tokens, other_tokens=not pair.same_tokens)
    return {"commands": [command], "notes": list(pair.notes)}


def _needs_padding(engine: Engine, target: Source, draft: Source) -> bool:
    """Whether the same tokens have another number of rows than the engine takes."""
    rows, own = target.weights.config.vocab_size, draft.weights.config.vocab_size
    same = target.tokenizer.fingerprint() == draft.tokenizer.fingerprint()
    return same and abs(rows - own) > (128 if engine == "llama.cpp" else 0)
