"""``draftsmith train``: recipes, and a look at what they would train on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftsmith.cli.terminal import BOLD, DIM, Terminal, tolerate_encodings
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.train.audit import AuditSummary
    from draftsmith.train.recipe import Recipe

__all__ = ["train"]

SHOWN_PROBLEMS = 20


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to make, stage by stage.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change: sft.learning_rate=1e-5")
    ] = None,
    *,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Only this stage of the recipe.")] = None,
    audit: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Train nothing; check all rows and show N documents, what is not learnt in grey."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Let N workers of Ray write the replies of generate stages; see RAY_ADDRESS."),
    ] = None,
    color: Annotated[str, typer.Option(metavar="auto|always|never", help="Grey and bold in the audit.")] = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Make a draft (or any model) as a recipe says.

    Each stage makes a folder below the recipe's output. What is finished is not done again, and what was interrupted
    goes on from its last checkpoint. Started by torchrun, several processes or GPUs share the work. Needs the extra
    train: pip install 'draftsmith[train]'.
    """
    tolerate_encodings()
    from draftsmith.train.recipe import read_recipe

    read = read_recipe(recipe, overrides or ())
    if audit is not None:
        _audit(read, stage, audit, Terminal.of(sys.stdout, color))
        return
    _need_torch()
    if ray_workers is not None:
        from draftsmith.engine.ray_workers import check_ray

        check_ray(ray_workers)
    from draftsmith.train.runner import Reporter, run_recipe
    from draftsmith.train.world import world

    records = run_recipe(read, Reporter(tell=_tell, progress=_progress), only=stage, ray_workers=ray_workers)
    if json_output and world().first:
        chosen = ("kind", "metrics", "speed", "data", "seconds")
        stages = {name: {key: record.get(key) for key in chosen} for name, record in records.items()}
        sys.stdout.write(json.dumps({"output": str(read.output), "stages": stages}) + "\n")


def _need_torch() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f"training needs {' and '.join(missing)}; install them with: pip install 'draftsmith[train]'")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _progress(name: str, record: Mapping[str, float]) -> None:
    """One line a record: people read it, and a file of them is a log."""
    parts = [f"{name}: step {record['step']:.0f} of {record['steps']:.0f}", f"loss {record['loss']:.4f}"]
    for key, label in (
        ("eval_loss", "held-out loss"),
        ("eval_acceptance", "acceptance"),
        ("eval_greedy_match", "greedy match"),
        ("eval_length_sampled", "accepted length"),
        ("eval_length_greedy", "greedy length"),
        ("eval_preference_accuracy", "preferred"),
    ):
        if key in record:
            parts.append(f"{label} {record[key]:.3f}")
    speed = f"{record['tokens_per_s']:.0f} tokens/s, {record['share_of_peak']:.1%} of peak"
    parts += [speed, f"{_duration(record['eta_s'])} left"]
    _tell(" · ".join(parts))


def _duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _audit(recipe: Recipe, only: str | None, count: int, terminal: Terminal) -> None:
    from draftsmith.train.audit import spans, summarise
    from draftsmith.train.audit_plan import audited_stages

    if count < 0:
        raise UsageError(f"--audit is {count}; it must be 0 (counts only) or more")
    problems = 0
    for name, plan, awaited in audited_stages(recipe, only):
        for reference in awaited:
            terminal.line(f"{name}: {reference} is not made yet, and not looked at")
        if not plan.sources:
            continue
        summary = summarise(plan, count)
        problems += len(summary.problems) if plan.bad_rows == "stop" else 0
        for number, documents in enumerate(summary.shown, start=1):
            for document in documents:
                terminal.line(f"{name}, document {number}, {document.ids.size} tokens", BOLD)
                for span in spans(document, plan.tokenizer):
                    terminal.write(span.text, "" if span.learnt else DIM)
                terminal.line()
        for problem in summary.problems[:SHOWN_PROBLEMS]:
            terminal.line(str(problem))
        terminal.line(_summary_line(name, summary))
    if problems:
        raise UsageError(f'{problems} rows cannot be trained on; mend or remove them, or set bad_rows = "skip"')


def _summary_line(name: str, summary: AuditSummary) -> str:
    share = summary.learnt_tokens / summary.tokens if summary.tokens else 0.0
    return (
        f"{name}: {summary.rows} rows, {summary.documents} documents, {summary.tokens} tokens, {share:.0%} of them "
        f"learnt, the longest has {summary.longest}; {summary.too_long} rows too long, {len(summary.problems)} bad"
    )
